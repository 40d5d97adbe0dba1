"""The page: what was given, section by section, and what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dejavu.report import Page
from dejavu.results_page import findings, frontier, plans, quality, roofline, speed
from dejavu.results_page.missing import missing

if TYPE_CHECKING:
    from dejavu.results_page.collection import Collection
    from dejavu.results_page.reading import Source


def render_page(collection: Collection, title: str | None = None) -> str:
    """All of it as one HTML file that fetches nothing."""
    page = Page(title or f"{collection.model}: quality and speed")
    _headline(page, collection)
    page.facts(_facts(collection))
    _frontier(page, collection)
    _tasks(page, collection)
    _texts(page, collection)
    _speed(page, collection)
    _plans(page, collection)
    _adaptation(page, collection)
    _analysis(page, collection)
    _missing(page, collection)
    return page.html()


def describe(collection: Collection) -> dict[str, Any]:
    """What the page shows, JSON-able: model, fingerprint, sources, frontier, and what is missing with its command."""
    found = [s for source in collection.of("frontier") for s in frontier.from_rows(source.data["rows"])]
    return {
        "model": collection.model,
        "fingerprint": collection.fingerprint,
        "sources": [
            {"path": str(s.path), "kind": s.kind, "dates": s.dates, "commands": s.commands}
            for s in collection.sources
        ],
        "frontier": [vars(setting) for setting in [*found, *frontier.from_runs(collection)]],
        "missing": [{"what": what, "command": command} for what, command in missing(collection)],
    }


def _headline(page: Page, collection: Collection) -> None:
    rows = [s for source in collection.of("frontier") for s in frontier.from_rows(source.data["rows"])]
    sentences = [frontier.sentence(rows or frontier.from_runs(collection))]
    sentences += [
        s for source in collection.of("adaptation") for s in findings.adaptation_sentences(source.data)
    ]
    sentences += [source.data["verdict"][0] for source in collection.of("analysis") if source.data["verdict"]]
    if any(sentences):
        page.verdict([sentence for sentence in sentences if sentence])


def _facts(collection: Collection) -> dict[str, str]:
    documents = [s.data for s in collection.of("eval", "bench", "analysis")]
    machines = dict.fromkeys(_machine(d["machine"]) for d in documents)
    machines |= dict.fromkeys(
        str(row["cpu"])
        for s in collection.of("frontier")
        for row in s.data["rows"]
        if "cpu" in row and not machines
    )
    versions = dict.fromkeys(
        _versions(d.get("versions") or d["machine"].get("versions") or {}) for d in documents
    )
    dates = sorted({date for source in collection.sources for date in source.dates})
    synthetic = " (synthetic weights: speed only)" if collection.synthetic else ""
    facts = {
        "Model": f"{collection.model}{synthetic}",
        "Fingerprint": collection.fingerprint or "",
        "Machine": "; ".join(machines),
        "Versions": "; ".join(filter(None, versions)),
        "Measured": " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "",
        "From": ", ".join(str(source.path) for source in collection.sources),
    }
    return {name: value for name, value in facts.items() if value}


def _machine(machine: dict[str, Any]) -> str:
    cores = f", {machine['physical_cores']} cores" if "physical_cores" in machine else ""
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB" if machine.get("memory_bytes") else ""
    return f"{machine['cpu']}{cores}{memory}"


def _versions(versions: dict[str, str]) -> str:
    shown = {"dejavu-llm": "dejavu", "python": "Python", "numpy": "NumPy"}
    return ", ".join(f"{label} {versions[name]}" for name, label in shown.items() if name in versions)


def _made(page: Page, source: Source) -> None:
    """Which command the figures above came from."""
    for command in source.commands:
        page.command(command, f"{', '.join([source.path.name, *source.dates])}:")


def _frontier(page: Page, collection: Collection) -> None:
    charts = [(s.path.name, "", frontier.from_rows(s.data["rows"])) for s in collection.of("frontier")]
    names = " and ".join(s.path.name for s in collection.of("eval", "bench"))
    note = ": one sequence, shortest cache, the number of threads that is fastest"
    charts.append((names, note, frontier.from_runs(collection)))
    charts = [entry for entry in charts if entry[2]]
    if not charts:
        return
    page.heading("Quality and speed")
    page.paragraph(
        "Each point is a way to run the model: how fast it decodes one sequence, and its perplexity over that of the dense "
        "float32 base (geometric mean over the texts), drawn as what it is above 1, from 0.05% on. Right and low is "
        "better; dashed: those that no other beats in both."
    )
    title = "Loss of quality against speed"
    page.charts([(frontier.chart(found, title), f"From {name}{note}.") for name, note, found in charts])
    for name, _, found in charts:
        page.table(frontier.table(found), folded=f"Numbers: {name}")
    for source in collection.of("frontier"):
        _made(page, source)


def _tasks(page: Page, collection: Collection) -> None:
    given = [s for s in collection.of("eval") if s.data["runs"][0]["tasks"]]
    if not given:
        return
    page.heading("Tasks")
    for source in given:
        if collection.adapted(source):
            page.paragraph(f"Of the adapted model {source.model}:")
        page.table(quality.task_table(source.data))
        if charts := quality.difference_charts(source.data):
            page.charts(charts)
        for sentence in quality.skipped(source.data):
            page.paragraph(sentence)
        page.table(quality.task_table(source.data, every=True), folded=f"All metrics: {source.path.name}")
        _made(page, source)


def _texts(page: Page, collection: Collection) -> None:
    given = [s for s in collection.of("eval") if s.data["runs"][0]["texts"]]
    if not given:
        return
    page.heading("Perplexity, and distance from the base")
    for source in given:
        if collection.adapted(source):
            page.paragraph(f"Of the adapted model {source.model}:")
        page.table(quality.text_table(source.data))
        _made(page, source)


def _speed(page: Page, collection: Collection) -> None:
    if not collection.of("bench"):
        return
    page.heading("Speed")
    for source in collection.of("bench"):
        records, peers = source.data["results"], source.data.get("peers")
        if collection.adapted(source):
            page.paragraph(f"Of the adapted model {source.model}:")
        page.table(speed.speed_table(records))
        if peers:
            page.table(speed.peer_table(peers))
        if memory := speed.memory_table(records):
            page.table(memory)
        step, parts = roofline.step_chart(records), roofline.part_charts(records)
        if step or parts:
            page.paragraph(
                "How near a decode step is to the speed of memory. Full, and in brackets: reading the touched bytes at "
                f"{speed.bandwidths(records)}; faint: the rest of the time."
            )
            page.charts([(chart, "") for chart in [step, *parts] if chart])
        if parts:
            page.table(roofline.part_table(records), folded=f"Numbers: parts of a step, {source.path.name}")
        _made(page, source)


def _plans(page: Page, collection: Collection) -> None:
    given = collection.of("plan")
    if not given:
        return
    page.heading("Access plans")
    page.table(plans.table([source.data for source in given]))
    charts = [chart for source in given for chart in plans.density_charts(source.data)]
    if charts:
        page.charts(charts)
    for source in given:
        _made(page, source)


def _adaptation(page: Page, collection: Collection) -> None:
    for source in collection.of("adaptation"):
        page.heading("Adaptation to sparse MLPs")
        for sentence in findings.adaptation_sentences(source.data):
            page.paragraph(sentence)
        page.charts([findings.adaptation_chart(source.data)])
        _made(page, source)


def _analysis(page: Page, collection: Collection) -> None:
    for source in collection.of("analysis"):
        page.heading("Is there contextual sparsity?")
        for sentence in source.data["verdict"]:
            page.paragraph(sentence)
        page.charts(findings.analysis_charts(source.data))
        page.paragraph(
            f"On {source.data['tokens']['evaluation']:,} tokens of {source.data['text']}, weights in "
            f"{source.data['codec']}; report.html beside the file has all figures."
        )
        _made(page, source)


def _missing(page: Page, collection: Collection) -> None:
    found = list(missing(collection))
    if not found:
        return
    page.heading("What is not here")
    for what, command in found:
        page.command(command, what)
