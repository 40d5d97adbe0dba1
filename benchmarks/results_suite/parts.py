"""The list of all measurements: commands, result, and about how long each takes.

Commands run inside the folder of results, where `data` (texts and tasks) and `peer-python` lie as links, so that what is
printed beside a figure names no path of the machine it was measured on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from results_suite.beside import AGREEMENTS, GATHER, SPEED

CODECS = ("bf16", "int8", "int4")
PLANS = {"bits": "model/plan-0.5", "bits-logits": "model/logits-0.5"}
"""Of the model, without any training: five bits as values at density .5, and with logits from leading bits too."""
ADAPTED = {"smollm2-sparse": ("plan",), "smollm2-half": ("plan", "gentler/0.63")}
"""What comes with dejavu of the default model, adapted: names, and in their folders the plans."""
MOST_ADAPTED = "smollm2-sparse"
DEFAULT = "smollm2"
TEXTS = "data/heldout.jsonl", "data/moby_dick.txt"
TRAINING = "data/calibration.jsonl"
PEER_PYTHON = "./peer-python"
PEER_FILES = "peer-files"
"""Where llama.cpp's files are kept."""
DISTANCES = (0, 1, 2)
"""Look-ahead of the low-rank predictors of the model."""
TRAINED = {
    **{f"low_rank{n}": f"model/predictors-{n}" for n in DISTANCES},
    "labels0": "model/predictors-labels",
}
"""Low-rank predictors of the model, as the tables call them, and their parts: of sizes, and one of labels."""


@dataclass(frozen=True)
class Scale:
    """How much of everything; texts of options."""

    tasks: str = ""
    tokens: int = 20_000
    bench: str = "-p 512 -n 64 -d 0,1024 -r 5"
    relu_bench: str = "-p 256 -n 64 -d 0,128 -r 5"
    shape_bench: str = "-p 128 -n 32 -r 5"
    analyze: str = ""
    train: str = ""
    logits: str = ""
    predictors: str = "--rank 128 --tokens 1000000"
    """The paper has 400,000 tokens; a model of this width needs more."""
    selectors: str = (
        "--selectors oracle,random,threshold,sketch2,sketch3,sketch4,values5 --densities .7,.6,.5,.4,.3 "
        "--at random=.5,.3"
    )
    adapted_selectors: str = "--selectors oracle,sketch2,sketch3,sketch4 --densities .5,.3"
    look_ahead: str = "--selectors sketch4,sketch4+1,sketch4+2 --densities .5,.3"
    compensated: str = (
        "--selectors sketch2,sketch3,sketch4,values5,threshold --densities .7,.6,.5,.4,.3 --compensator 64"
    )
    selector_speed: str = (
        "--selectors threshold,sketch2,sketch3,sketch4,values5,sketch4+1,sketch4+2 "
        "--densities .5,.3 --repeats 9"
    )
    relu: str = "--minutes 10"
    frontier: str = "--tokens 10000 --repeats 25"
    beside: str = "--shape tinyllama-1.1b --repeats 7"
    agreement: str = ""
    blocks: str = "--repeats 40"
    gather: str = "--repeats 20"
    models: str = "--context 256 --repeats 24"
    kernels: str = ""
    shapes: dict[str, float] = field(default_factory=lambda: {"opt-1.3b": 1.0, "opt-6.7b": 4.0})
    """Name -> time compared with the first."""
    time: float = 1.0
    """Factor on the estimates."""


FULL = Scale()
TOY = Scale(
    tasks="--limit 4",
    tokens=300,
    bench="-p 16 -n 4 -r 2",
    relu_bench="-p 16 -n 4 -r 2",
    shape_bench="-p 16 -n 4 -r 2",
    analyze="--tokens 512",
    train="--search-tokens 64 --verify-tokens 64",
    logits="--verify-tokens 64",
    predictors="--rank 8 --tokens 1024 --search-tokens 64 --verify-tokens 64",
    selectors="--selectors oracle,sketch4 --densities .5,.3 --at oracle=.5 "
    "--calibration-tokens 600 --agreement-tokens 100",
    adapted_selectors="--selectors sketch4 --densities .5 --calibration-tokens 600 --agreement-tokens 100",
    look_ahead="--selectors sketch4,sketch4+1 --densities .5 --calibration-tokens 600 --agreement-tokens 100",
    compensated="--selectors sketch4 --densities .5 --compensator 4 --calibration-tokens 600 --agreement-tokens 100",
    selector_speed="--selectors sketch4 --densities .5 --repeats 1 --calibration-tokens 600",
    relu="--minutes 0.05 --width 64 --layers 2 --heads 4 --neurons 128 --vocab 512 --length 64",
    frontier="--tokens 300 --repeats 2",
    beside="--repeats 1",
    agreement="--tokens 64",
    blocks="--densities .1 --repeats 1 --context 16",
    gather="--densities .1 --repeats 1",
    models="--context 16 --repeats 1",
    kernels="--quick --repeats 3 --only mlp/*/cold",
    shapes={"opt-1.3b": 1.0},
    time=0.03,
)


@dataclass(frozen=True)
class Part:
    """Commands and what they leave."""

    name: str
    commands: tuple[str, ...]
    minutes: float
    """On two cores."""
    result: str
    """File or folder, relative to the folder of results."""
    after: tuple[str, ...] = ()
    """Parts whose results it reads."""
    printed: bool = False
    """The result is what the command prints."""
    resume: str = ""
    """Option with which an interrupted command goes on."""
    checkpoint: str = ""
    """File without which there is nothing to go on from; empty: there always is."""


def parts(scale: Scale, model: str, *, peer: bool) -> list[Part]:
    """In the order in which they run.

    Args:
        scale: how much of everything.
        model: as dejavu's commands take it; what is adapted of the default one is measured too.
        peer: whether there is a Python that has llama.cpp.
    """
    found = [*_plans(scale, model), *_judged(scale, "model", model), *_predictors(scale, model)]
    found += _selectors(scale, model)
    if model == DEFAULT:
        found += _adapted(scale)
    if peer:
        found.append(_frontier(scale, model))
        found += _beside(scale) if model == DEFAULT else []
    found += _relu(scale)
    for shape, slower in scale.shapes.items():
        found += _shape(scale, shape, slower)
    return [*found, _part("kernels", f"python benchmarks/kernels.py {scale.kernels} --json kernels.json", 15)]


def _part(
    name: str, command: str, minutes: float, *after: str, result: str = "", printed: bool = False
) -> Part:
    return Part(name, (" ".join(command.split()),), minutes, result or f"{name}.json", after, printed)


def _plans(scale: Scale, model: str) -> list[Part]:
    bits, logits = PLANS.values()
    train = (
        f"dejavu train {model} --text {TRAINING} --density 0.5 --selector sketch --bits 5 --values leading "
        f"--codec int8 {scale.train} -o {bits}"
    )
    more = f"dejavu plan logits {bits} {model} --text {TRAINING} {scale.logits} -o {logits}"
    return [_part(bits, train, 6, result=bits), _part(logits, more, 2, bits, result=logits)]


def _eval(scale: Scale, name: str, options: str, more: str, minutes: float, *after: str) -> Part:
    texts = " ".join(f"--text {text}" for text in TEXTS)
    command = (
        f"dejavu eval {options} {more} --tasks paper --task-folder data/tasks {scale.tasks} "
        f"{texts} --tokens {scale.tokens} --spot-check 20 -o {name}.json"
    )
    return Part(name, (" ".join(command.split()),), minutes, f"{name}.json", after, resume="--resume")


def _bench(name: str, options: str, minutes: float, *after: str) -> Part:
    return _part(name, f"dejavu bench {options} --parts --json", minutes, *after, printed=True)


def _analysis(scale: Scale, name: str, model: str, minutes: float, *after: str) -> Part:
    command = f"dejavu analyze {model} --text {TEXTS[0]} {scale.analyze} -o {name}"
    return _part(name, command, minutes, *after, result=name)


def _judged(scale: Scale, name: str, model: str) -> list[Part]:
    plans = list(PLANS.values())
    dense = " ".join(f"--codec {codec}" for codec in ("f32", "int8", "int4"))
    return [
        _eval(scale, f"{name}/eval-dense", model, dense, 26),
        _eval(
            scale, f"{name}/eval-plans", model, f"--codec int8 --plan off --plan {plans[-1]}", 26, plans[-1]
        ),
        _bench(f"{name}/bench-dense", f"{model} --codec {','.join(CODECS)} {scale.bench}", 1),
        _bench(
            f"{name}/bench-plans",
            f"{model} --codec int8 --plan off,{','.join(plans)} {scale.bench}",
            1,
            *plans,
        ),
        _analysis(scale, f"{name}/analysis", model, 5),
    ]


def _adapted(scale: Scale) -> list[Part]:
    found = []
    for name, plans in ADAPTED.items():
        listed = [f"--plan {plan}" for plan in plans]
        found += [
            _eval(
                scale,
                f"{name}/eval",
                name,
                f"--base {DEFAULT} --codec int8 {' '.join(listed)}",
                15 * len(plans),
            ),
            _bench(
                f"{name}/bench", f"{name} --codec int8 --plan {','.join(('off', *plans))} {scale.bench}", 1
            ),
        ]
    name = f"{MOST_ADAPTED}/selectors"
    command = (
        f"python benchmarks/selector_table.py quality --model {MOST_ADAPTED} --calibration {TRAINING} {_texts(scale)} "
        f"{scale.adapted_selectors} --out {name}.jsonl"
    )
    return [*found, _part(name, command, 15, result=f"{name}.jsonl")]


def _predictors(scale: Scale, model: str) -> list[Part]:
    found = []
    for selector, name in TRAINED.items():
        labels = selector.startswith("labels")
        learn = "--learn labels " if labels else ""
        command = (
            f"dejavu train {model} --text {TRAINING} --selector low_rank --uniform --density 0.5 "
            f"--lookahead {selector[-1]} {learn}--codec int8 {scale.predictors} -o {name}"
        )
        part = Part(
            name, (command,), 27 if labels else 17, name, resume="--resume", checkpoint=f"{name}.checkpoint"
        )
        found.append(part)
    return found


def _texts(scale: Scale) -> str:
    return f"--text {' '.join(TEXTS)} --tokens {scale.tokens}"


def _selectors(scale: Scale, model: str) -> list[Part]:
    ahead = tuple(name for name in TRAINED if name.startswith("low_rank"))

    def part(name: str, what: str, options: str, names: tuple[str, ...], minutes: float) -> Part:
        predictors = " ".join(f"{n}={TRAINED[n]}" for n in names)
        command = (
            f"python benchmarks/selector_table.py {what} --model {model} --calibration {TRAINING} {options} "
            f"--predictors {predictors} --out {name}.jsonl"
        )
        return Part(name, (command,), minutes, f"{name}.jsonl", tuple(TRAINED[n] for n in names))

    texts = _texts(scale)
    return [
        part("model/look-ahead", "quality", f"{texts} {scale.look_ahead}", ahead, 12),
        part("model/selectors", "quality", f"{texts} {scale.selectors}", (ahead[0], "labels0"), 55),
        part("model/compensated", "quality", f"{texts} {scale.compensated}", ahead[:1], 38),
        part("model/selector-speed", "speed", scale.selector_speed, ahead, 14),
    ]


def _frontier(scale: Scale, model: str) -> Part:
    plans = [f"{name}={plan}" for name, plan in PLANS.items()]
    for name, own in ADAPTED.items() if model == DEFAULT else ():
        for plan in own:
            label = "-".join([name.removeprefix(f"{model}-"), *plan.split("/")[1:]])
            plans.append(f"{label}={plan}@{name}")
    options = (
        f"--model {model} --text {TEXTS[0]} {scale.frontier} --plans {' '.join(plans)} "
        f"--peer-python {PEER_PYTHON} --peer-files {PEER_FILES} --out model/frontier.jsonl"
    )
    command = "python benchmarks/frontier.py"
    return Part(
        "model/frontier",
        (
            f"{command} quality {options}",
            f"{command} speed {options}",
            f"{command} plot --out model/frontier.jsonl --svg model/frontier.svg",
        ),
        10,
        "model/frontier.jsonl",
        tuple(PLANS.values()),
    )


def _beside(scale: Scale) -> list[Part]:
    """Of the default model, which both read from the same file."""
    peer = f"--peer-python {PEER_PYTHON}"
    speed = f"python benchmarks/speed.py {peer} --model {DEFAULT} {scale.beside} --folder {PEER_FILES}"
    return [
        _part(SPEED, f"{speed} --json {SPEED}.json", 10),
        *(
            _part(
                name,
                f"python benchmarks/agreement.py {peer} --text {TEXTS[0]} {option} {scale.agreement} --json {name}.json",
                10 if option == "--as-q8" else 2,
            )
            for name, option in AGREEMENTS.items()
        ),
    ]


def _relu(scale: Scale) -> list[Part]:
    model, plan = "relu/model", "relu/plan"
    make = f"python benchmarks/relu_opt.py --text {TRAINING} {scale.relu} -o {model}"
    train = (
        f"dejavu train {model} --text {TRAINING} --max-ppl-ratio 1.02 --codec int8 {scale.train} -o {plan}"
    )
    both = model, plan
    return [
        _part(model, make, 12, result=model),
        _part(plan, train, 5, model, result=plan),
        _eval(scale, "relu/eval", model, f"--codec int8 --plan off --plan {plan}", 4, *both),
        _bench("relu/bench", f"{model} --codec int8 --plan off,{plan} {scale.relu_bench}", 1, *both),
        _analysis(scale, "relu/analysis", model, 2, model),
    ]


def _shape(scale: Scale, shape: str, slower: float) -> list[Part]:
    def sparse(what: str, name: str, options: str, minutes: float) -> Part:
        command = f"python benchmarks/sparse.py {what} --shape {shape} {options}"
        return _part(f"{shape}/{name}", command, minutes * slower, printed=True)

    found = [
        sparse("kernels", f"blocks-{codec}", f"--codec {codec} {scale.blocks}", 0.3)
        for codec in CODECS
        if slower == 1  # one wide shape says it
    ]
    if f"{shape}/gather" == GATHER:
        found.append(sparse("gather", "gather", scale.gather, 3))
    codecs = "bf16,int8,int4" if slower == 1 else "int8,int4"  # of the largest bf16 takes too much memory
    return [
        *found,
        sparse("model", "plan", f"--codec int8 --neurons .1 --heads .5 {scale.models}", 0.4),
        _bench(f"{shape}/bench", f"--shape {shape} --codec {codecs} {scale.shape_bench}", 2 * slower),
    ]
