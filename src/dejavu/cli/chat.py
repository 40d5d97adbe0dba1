"""dejavu chat."""

from __future__ import annotations

import contextlib
import json as jsonlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from dejavu.cli import options
from dejavu.cli.options import CodecName, ExecutorName, KvName
from dejavu.cli.output import describe_timings, print_error, print_json, print_note
from dejavu.cli.streams import argument_text
from dejavu.errors import DejavuError, InputError

if TYPE_CHECKING:
    from dejavu.llm import LLM
    from dejavu.outputs import Generation
    from dejavu.sampling import SamplingParams

HELP = """\
/reset        forget the conversation
/system TEXT  set the system message (empty: none) and forget the conversation
/save FILE    write the conversation as JSON
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no timings.")] = False,
    json: options.Json = False,
) -> None:
    """Talk with a model. Type /help for the commands.

    With --json, or when stdin is not a terminal, each line of stdin is a turn.
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
    with open_llm(
        model or named or options.DEFAULT_MODEL,
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
        system = None if system is None else argument_text(system)
        session = Session(llm, params, system=system, json=json, quiet=quiet)
        interactive = sys.stdin.isatty() and not json
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
        json: print each answer as a JSON object instead of as it comes.
        quiet: no timings.
    """

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        *,
        system: str | None = None,
        json: bool = False,
        quiet: bool = False,
    ) -> None:
        self.llm = llm
        self.params = params
        self.json = json
        self.quiet = quiet
        self.conversation = llm.conversation()
        self.messages: list[dict[str, str]] = []
        self.reset(system)

    def reset(self, system: str | None) -> None:
        """Begin anew."""
        self.system = system
        self.messages = [{"role": "system", "content": system}] if system else []

    def turn(self, read_line: Callable[[], str]) -> bool:
        """Read a line, and obey or answer it. Returns whether to go on."""
        try:
            line = read_line().strip()
        except EOFError:
            return False
        except KeyboardInterrupt:
            print_note("\n(Ctrl-D or /quit leaves)")
            return True
        except InputError as error:
            if not self.json:
                raise
            print_error(error, as_json=True)  # a program that reads the answers counts on one to each line
            return True
        if line.startswith("/"):
            return self.obey(line)
        if line:
            self.answer(line)
        return True

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
        """Write the conversation to a file."""
        from dejavu.models.store import expand_path

        if not name:
            print_note("Write: /save FILE")
            return
        try:
            expand_path(name).write_text(
                jsonlib.dumps(self.messages, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
            )
        except (OSError, ValueError) as error:
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
            print_error(error, as_json=self.json)
            return
        self.messages.append({"role": "assistant", "content": "".join(pieces)})
        if self.json:
            print_json(result.to_dict() if result else {"text": "".join(pieces), "interrupted": True})
            return
        print()
        if result is None:
            print_note("(stopped)")
        elif not self.quiet:
            print_note(describe_timings(result))


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
