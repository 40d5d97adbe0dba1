"""dejavu generate."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dejavu.cli import options
from dejavu.cli.options import CodecName, ExecutorName, KvName
from dejavu.cli.output import describe_timings, print_json, print_note
from dejavu.cli.streams import argument_text
from dejavu.errors import InputError

if TYPE_CHECKING:
    from dejavu.llm import LLM
    from dejavu.outputs import Generation, StreamEvent
    from dejavu.sampling import SamplingParams


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from stdin.")],
    model: Annotated[str, typer.Option("--model", "-m", help=options.MODEL_HELP)] = options.DEFAULT_MODEL,
    codec: options.Codec = CodecName.auto,
    kv: options.Kv = KvName.f16,
    threads: options.Threads = None,
    context: options.Context = None,
    executor: options.Executor = ExecutorName.native,
    plan: options.Plan = "auto",
    fallback: options.Fallback = True,
    offline: options.Offline = False,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw", help="Wrap the prompt in the chat template; default: if the model has one."
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message, with a chat template.")] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", "-n", min=0, help="Most tokens to generate; 0: until the context is full."
        ),
    ] = 256,
    min_tokens: Annotated[int, typer.Option(help="Do not stop before so many tokens.")] = 0,
    temperature: Annotated[
        float, typer.Option(help="0 takes the most likely token; --top-k, --top-p and --min-p need more.")
    ] = 0.0,
    top_k: Annotated[int, typer.Option(help="Choose from the k most likely tokens; 0: from all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Choose from the tokens that make up this probability.")] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Drop tokens less likely than this times the most likely one.")
    ] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: avoid tokens seen before.")] = 1.0,
    presence_penalty: Annotated[
        float, typer.Option(help="Subtracted from logits of tokens generated.")
    ] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="Subtracted once per time generated.")] = 0.0,
    logit_bias: Annotated[
        list[str] | None, typer.Option(metavar="ID=BIAS", help="Added to a token's logit. Repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same tokens.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the text. Repeatable.")] = None,
    stop_token_ids: Annotated[
        list[int] | None, typer.Option("--stop-token-id", help="A token that ends it. Repeatable.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the model's end token.")
    ] = False,
    include_stop: Annotated[
        bool, typer.Option("--include-stop", help="Keep the stop string in the text.")
    ] = False,
    keep_special: Annotated[bool, typer.Option("--keep-special", help="Show special tokens.")] = False,
    logprobs: Annotated[
        int | None, typer.Option(help="With --json: log-probabilities of the tokens and of so many others.")
    ] = None,
    n: Annotated[
        int, typer.Option("--n", help="Number of completions; more than one needs a --temperature above 0.")
    ] = 1,
    check: Annotated[
        bool,
        typer.Option("--check", help="Of a plan: how many of the neurons that matter most it selected."),
    ] = False,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print text as it comes.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, timings or notes.")] = False,
    json: options.Json = False,
) -> None:
    """Continue a prompt, or answer it.

    The text goes to stdout, the timings to stderr.
    """
    from dejavu.cli.loading import open_llm
    from dejavu.sampling import SamplingParams

    if logprobs is not None and not json:
        raise InputError("--logprobs are shown in JSON alone", fix="add --json, or leave --logprobs out")
    params = SamplingParams(
        n=n,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=parse_logit_bias(logit_bias or ()),
        seed=seed,
        max_tokens=max_tokens or None,
        min_tokens=min_tokens,
        stop=tuple(map(argument_text, stop or ())),
        stop_token_ids=tuple(stop_token_ids or ()),
        ignore_eos=ignore_eos,
        include_stop_str_in_output=include_stop,
        skip_special_tokens=not keep_special,
        logprobs=logprobs,
    )
    if temperature == 0 and (idle := _idle_options(params)):
        raise InputError(
            f"{idle} changes nothing at temperature 0, which takes the most likely token",
            fix=f"add a --temperature above 0, or leave {idle} out",
        )
    if temperature == 0 and seed is not None and not (quiet or json):
        print_note("--seed changes nothing at temperature 0, which takes the most likely token")
    text = read_prompt(prompt)
    system = None if system is None else argument_text(system)
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
        if chat is None:
            chat = llm.tokenizer.chat_template is not None
        if system is not None and not chat:
            raise InputError("--system needs a chat template", fix="use --chat, or put it into the prompt")
        if check and (llm.plan is None or executor is not ExecutorName.native):
            raise InputError(
                "there is no plan to check", fix="add --plan PLAN --no-fallback, and use --executor native"
            )
        if check and quiet and not json:
            raise InputError("--quiet leaves no place for what --check finds", fix="leave one of them away")
        messages = [{"role": "user", "content": text}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        if json or not stream or n > 1:
            result = llm.chat(messages, params) if chat else llm.generate(text, params)
            evidence = _evidence(llm, result, check)
            if json:
                print_json(result.to_dict() | _about_plan(llm, evidence))
            else:
                _print_result(result, evidence, params, quiet=quiet)
        else:
            events = llm.stream_chat(messages, params) if chat else llm.stream(text, params)
            _print_stream(events, llm, params, check=check, quiet=quiet)


def _idle_options(params: SamplingParams) -> str:
    """Those of the options that choose between tokens that were given; they are for a temperature above 0."""
    given = {"--top-k": params.top_k > 0, "--top-p": params.top_p < 1, "--min-p": params.min_p > 0}
    return " and ".join(name for name, is_given in given.items() if is_given)


def _evidence(llm: LLM, result: Generation, check: bool) -> dict[str, Any] | None:
    """What the plan did; None without one, or where nothing counts."""
    from dejavu.engine import NativeExecutor
    from dejavu.evaluation.running import plan_evidence

    if llm.plan is None or not isinstance(llm.executor, NativeExecutor):
        return None
    import numpy as np

    tokens = np.array([*result.prompt_token_ids, *result.completions[0].token_ids], np.int32)
    return {"name": llm.plan.name} | plan_evidence(
        llm.executor, context=len(tokens), checked=tokens if check else None
    )


def _about_plan(llm: LLM, evidence: dict[str, Any] | None) -> dict[str, Any]:
    """What --json says of the plan: what it did, and what of it does not pay here and ran dense."""
    found: dict[str, Any] = {"plan": evidence}
    if llm.break_even is not None:
        layers = range(llm.executor.config.n_layers) if llm.plan is None else llm.break_even.dense
        found["fallback"] = {"dense_layers": list(layers), "speedup": llm.break_even.speedup}
    return found


def _print_stream(
    events: Iterable[StreamEvent], llm: LLM, params: SamplingParams, *, check: bool, quiet: bool
) -> None:
    last = None
    for last in events:
        print(last.text, end="", flush=True)
    print()
    if last is not None and last.generation is not None and not quiet:
        print_ending(last.generation, params)
        _print_evidence(_evidence(llm, last.generation, check))


def _print_evidence(evidence: dict[str, Any] | None) -> None:
    from dejavu.evaluation.running import describe

    if evidence is not None:
        print_note(f"plan {evidence['name'] or '(no name)'}: {describe(evidence)}")


def print_ending(result: Generation, params: SamplingParams) -> None:
    """Note the timings, and that there was no room to end, for want of `params.max_tokens` or of context."""
    print_note(describe_timings(result))
    cut = [completion for completion in result.completions if completion.finish_reason == "length"]
    if not cut:
        return
    which = f" ({', '.join(str(c.index) for c in cut)})" if len(result.completions) > 1 else ""
    made = len(cut[0].token_ids)  # all of them have as many: they are of one prompt
    if made == params.max_tokens:
        print_note(f"cut off{which}: no more than {made} tokens were wanted (--max-tokens)")
    else:
        context = result.usage.prompt_tokens + made
        print_note(f"cut off{which}: prompt and answer fill the context of {context} tokens (--context)")


def _print_result(
    result: Generation, evidence: dict[str, Any] | None, params: SamplingParams, *, quiet: bool
) -> None:
    for completion in result.completions:
        if len(result.completions) > 1:
            print_note(f"--- {completion.index}")
        print(completion.text, flush=True)
    if not quiet:
        print_ending(result, params)
        _print_evidence(evidence)


def read_prompt(prompt: str) -> str:
    """The prompt itself, or all of stdin for "-" (less one newline at its end).

    Raises:
        InputError: it is empty, or stdin cannot be read or is not UTF-8.
    """
    text = argument_text(prompt) if prompt != "-" else _read_stdin()
    if not text:  # which a chat template would wrap, so that the model gets a prompt all the same
        raise InputError("the prompt is empty", fix="give a text with at least one character")
    return text


def _read_stdin() -> str:
    try:  # not by the locale, which may be another, or let everything pass
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"stdin is not UTF-8 at byte {error.start}", fix="convert it to UTF-8") from error
    except OSError as error:
        raise InputError(
            f"cannot read stdin: {error.strerror or error}", fix="give a file: - < FILE"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


def parse_logit_bias(entries: Sequence[str]) -> dict[int, float]:
    """Read entries such as "50256=-100".

    Raises:
        typer.BadParameter: an entry of another form, or a second one for a token.
    """
    bias: dict[int, float] = {}
    for entry in entries:
        text, _, value = entry.partition("=")
        try:
            token, added = int(text), float(value)
        except ValueError:
            raise typer.BadParameter(
                f"{entry!r} is not of the form ID=BIAS", param_hint="--logit-bias"
            ) from None
        if token in bias:
            raise typer.BadParameter(f"token {token} is given twice", param_hint="--logit-bias")
        bias[token] = added
    return bias
