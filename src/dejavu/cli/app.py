"""The group of verbs, and what happens when one fails."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dejavu.cli import (
    INTERRUPTED_EXIT_CODE,
    adapt,
    analyze,
    bench,
    chat,
    convert,
    env,
    eval,
    generate,
    info,
    perplexity,
    plan,
    pull,
    report,
    stored,
    train,
)
from dejavu.cli.output import UNEXPECTED_EXIT_CODE, print_error, print_json_error, print_unexpected, say
from dejavu.cli.streams import flush, output_error, prepare_streams
from dejavu.errors import DejavuError, OutputError

_UsageError: Any = typer.BadParameter.__base__
"""Of the click inside typer, or of its own, by version."""


class Group(TyperGroup):
    """Turns errors that dejavu raises on purpose, and Ctrl-C, into messages and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb. `ctx` is a click context: of the click inside typer, or of its own, by version."""
        try:
            return super().invoke(ctx)
        except DejavuError as error:
            print_error(error, as_json=bool(ctx.meta.get("dejavu.json")))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            say("")  # the terminal shows ^C; leave its line
            raise typer.Exit(INTERRUPTED_EXIT_CODE) from None


# Rich's help costs 150 ms of imports; the plain one is as clear.
app = typer.Typer(
    cls=Group, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, name="dejavu"
)


def _print_version(value: bool) -> None:
    if value:
        from dejavu.environment import versions

        print(f"dejavu {versions().get('dejavu-llm', '(not installed)')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Run language models by touching only the weights each token needs."""


app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("pull")(pull.pull)
app.command("list")(stored.list_models)
app.command("rm")(stored.remove)
app.command("info")(info.info)
app.command("convert")(convert.convert)
app.command("env")(env.env)
app.command("train")(train.train)
app.command("adapt")(adapt.adapt)
app.command("perplexity")(perplexity.perplexity)
app.command("eval")(eval.evaluate)
app.command("bench")(bench.bench)
app.command("analyze")(analyze.analyze)
app.command("report")(report.report)
app.add_typer(plan.app, name="plan")


def run(args: list[str]) -> int:
    """Run the command and return its exit code."""
    prepare_streams()
    as_json = "--json" in (args[: args.index("--")] if "--" in args else args)
    code, failure = UNEXPECTED_EXIT_CODE, None
    try:
        code = _call(args, as_json=as_json)
    except KeyboardInterrupt:
        code = INTERRUPTED_EXIT_CODE
    except Exception as error:
        failure = error
    code = _settle(code, failure, as_json=as_json)
    flush(sys.stderr)
    return code


def _call(args: list[str], *, as_json: bool) -> int:
    """The exit code of the command; errors that nobody foresaw pass."""
    try:
        # Not standalone, it raises errors of usage, and returns exit codes.
        code = typer.main.get_command(app).main(args=args, prog_name="dejavu", standalone_mode=not as_json)
        return code if isinstance(code, int) else 0
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 0
    except _UsageError as error:
        verb = "dejavu" if error.ctx is None else error.ctx.command_path
        print_json_error("UsageError", error.format_message(), f"see: {verb} --help")
        return int(error.exit_code)


def _settle(code: int, failure: Exception | None, *, as_json: bool) -> int:
    """The exit code, once it is known whether all that was printed arrived. Says so if not, and what failed unforeseen."""
    refused = output_error(failure)
    if refused is None and failure is not None:
        try:
            print_unexpected(failure, as_json=as_json)
        except OSError as error:
            refused = flush(sys.stdout) or error
    if refused is None:
        return code
    if isinstance(refused, BrokenPipeError):
        return 1  # the reader left, as of `| head`
    told = OutputError(
        f"cannot write the output: {refused.strerror or refused}", fix="free some space, or send it elsewhere"
    )
    with contextlib.suppress(OSError):
        print_error(told, as_json=False)  # on stderr, whatever was asked for
    return told.exit_code
