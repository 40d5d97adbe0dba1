"""dejavu chat."""

from __future__ import annotations

import contextlib
import json as jsonlib
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from dejavu.cli import options
from dejavu.cli.generate import print_ending
from dejavu.cli.options import CodecName, ExecutorName, KvName
from dejavu.cli.output import print_error, print_json, print_note
from dejavu.cli.streams import argument_text
from dejavu.errors import CacheError, DejavuError, InputError

if TYPE_CHECKING:
    from dejavu.llm import LLM
    from dejavu.outputs import Generation
    from dejavu.sampling import SamplingParams

HELP = """\
/reset        forget the conversation
/system TEXT  set the system message (empty: none) and forget the conversation
/save FILE    write the conversation as JSON into a new file
/help         show this
/quit         leave (Ctrl-D too)
Ctrl-C stops an answer."""


def chat(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=options.MODEL_HELP)] = None,
    named: Annotated[
        str | None, typer.Option("--model", "-m", help="The same, as generate takes it; default: smollm2.")
    ] = None,
    codec: options.Codec = CodecName.auto,
    kv: options.Kv = KvName.f16,
    threads: options.Threads = None,
    context: options.Context = None,
    executor: options.Executor = ExecutorName.native,
    plan: options.Plan = "auto",
    fallback: options.Fallback = True,
    offline: options.Offline = False,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", "-n", min=0, help="Most tokens of an answer; 0: until the context is full."
        ),
    ] = 0,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Choose from the k most likely tokens; 0: from all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Choose from the tokens that make up this probability.")
    ] = 0.95,
    min_p: Annotated[
        float, typer.Option(help="Drop tokens less likely than this times the most likely one.")
    ] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: avoid tokens seen before.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answers.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, timings or notes.")] = False,
    json: options.Json = False,
) -> None:
    """Talk with a model. Type /help for the commands.

    When stdin is not a terminal, each line of it is a turn, and the first error ends the chat. With --json no line is a
    command, and each gets one object: an answer or an error.
    """
    from dejavu.cli.loading import open_llm
    from dejavu.sampling import SamplingParams

    if model is not None and named is not None:
        raise InputError("the model is given twice", fix=f"leave out -m {named} or {model}")
    params = SamplingParams(
        max_tokens=max_tokens or None,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    model = model or named or options.DEFAULT_MODEL
    with open_llm(
        model,
        codec=codec,
        kv=kv,
        threads=threads,
        context=context,
        executor=executor,
        plan=plan,
        fallback=fallback,
        offline=offline,
        quiet=quiet or json,
    ) as llm:
        if llm.tokenizer.chat_template is None:
            raise InputError(
                f"{model} has no chat template",
                fix=f"let it continue a text: dejavu generate PROMPT -m {shlex.quote(model)}",
            )
        system = None if system is None else argument_text(system)
        interactive = sys.stdin.isatty() and not json
        session = Session(llm, params, system=system, json=json, quiet=quiet, interactive=interactive)
        if interactive:
            print_note("Type /help for the commands; Ctrl-C stops an answer, Ctrl-D leaves.")
        with line_history() if interactive else contextlib.nullcontext():
            while session.turn(partial(input, ">>> ") if interactive else piped_line):
                pass


def piped_line() -> str:
    """The next line of stdin.

    Raises:
        EOFError: there is none.
        InputError: it is not UTF-8.
    """
    line = sys.stdin.buffer.readline()  # not by the locale, as in generate
    if not line:
        raise EOFError
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError("a line of stdin is not UTF-8", fix="convert it to UTF-8") from error


class Session:
    """A conversation at the terminal.

    Args:
        llm: the model.
        params: how to answer.
        system: the system message.
        json: print each answer as a JSON object instead of as it comes, and take no line for a command.
        quiet: no timings.
        interactive: a person types the lines, who reads an error and goes on.
    """

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        *,
        system: str | None = None,
        json: bool = False,
        quiet: bool = False,
        interactive: bool = True,
    ) -> None:
        self.llm = llm
        self.params = params
        self.json = json
        self.quiet = quiet
        self.goes_on = json or interactive
        """After an error."""
        self.conversation = llm.conversation()
        self.messages: list[dict[str, str]] = []
        self.reset(system)

    def reset(self, system: str | None) -> None:
        """Begin anew."""
        self.system = system
        self.messages = [{"role": "system", "content": system}] if system else []

    def turn(self, read_line: Callable[[], str]) -> bool:
        """Read a line, and obey or answer it. Returns whether to go on.

        Raises:
            DejavuError: neither a person nor a program would see it and go on.
        """
        try:
            line = read_line().strip()
        except EOFError:
            return False
        except KeyboardInterrupt:
            print_note("\n(Ctrl-D or /quit leaves)")
            return True
        except InputError as error:
            self.fail(error)
            return True
        if self.json and not line:
            self.fail(InputError("the line is empty", fix="write a message on each line"))
        elif line.startswith("/") and not self.json:  # a program's lines are data, whoever wrote them
            return self.obey(line)
        elif line:
            self.answer(line)
        return True

    def fail(self, error: DejavuError) -> None:
        """Print the error of a turn: a program counts on one object to each line. Raises it where it ends the chat."""
        if not self.goes_on:
            raise error
        print_error(error, as_json=self.json)

    def obey(self, line: str) -> bool:
        """Carry out a command. Returns whether to go on."""
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if command in ("/quit", "/exit"):
            return False
        if command == "/reset":
            self.reset(self.system)
            print_note("The conversation is forgotten.")
        elif command == "/system":
            self.reset(rest or None)
            print_note("The system message is set; the conversation is forgotten.")
        elif command == "/save":
            self.save(rest)
        elif command == "/help":
            print_note(HELP)
        else:
            print_note(f"Unknown command {command}.\n{HELP}")
        return True

    def save(self, name: str) -> None:
        """Write the conversation to a new file; one that is there stays as it is."""
        from dejavu.models.store import atomic_write, expand_path

        if not name:
            print_note("Write: /save FILE")
            return
        try:
            path = expand_path(name)
            if path.exists():
                print_note(f"Cannot write {name}: it is there already")
                return
            with atomic_write(path) as stream:
                stream.write(f"{jsonlib.dumps(self.messages, ensure_ascii=False, indent=1)}\n".encode())
        except CacheError as error:  # says itself what cannot be written
            print_note(str(error.args[0]))
        except (DejavuError, OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.args[0]
            print_note(f"Cannot write {name}: {reason or error}")
        else:
            print_note(f"Saved to {name}.")

    def answer(self, text: str) -> None:
        """Answer the user's `text`; Ctrl-C keeps what has been said so far."""
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        result: Generation | None = None
        try:
            with contextlib.closing(
                self.llm.stream_chat(self.messages, self.params, conversation=self.conversation)
            ) as events:
                for event in events:
                    pieces.append(event.text)
                    if not self.json:
                        print(event.text, end="", flush=True)
                    result = event.generation or result
        except KeyboardInterrupt:
            pass  # `result` stays None
        except DejavuError as error:
            self.messages.pop()
            self.fail(error)
            return
        self.messages.append({"role": "assistant", "content": "".join(pieces)})
        if self.json:
            print_json(result.to_dict() if result else {"text": "".join(pieces), "interrupted": True})
            return
        print()
        if result is None:
            print_note("(stopped)")
        elif not self.quiet:
            print_ending(result, self.params)


@contextlib.contextmanager
def line_history() -> Iterator[None]:
    """Line editing, and the lines of earlier runs on the up key, where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    from dejavu.models.store import cache_root

    path = cache_root() / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
