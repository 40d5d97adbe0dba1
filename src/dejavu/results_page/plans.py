"""What access plans take in each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dejavu.report import Axis, Table, bar_chart
from dejavu.report.axes import number
from dejavu.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Facts = Mapping[str, Any]


def density_charts(plan: Facts) -> list[tuple[str, str]]:
    """Bars of the density of neurons, and of heads where these are selected, layer by layer."""
    charts = []
    for block in ("neurons", "heads"):
        kinds = {layer[block]["kind"] for layer in plan["layers"]}
        densities = [_density(plan, block, i) for i in range(len(plan["layers"]))]
        if kinds == {"dense"} or None in densities:
            continue
        recalls = [_evidence(plan, block, i).get("recall") for i in range(len(densities))]
        known = any(recall is not None for recall in recalls)
        chart = bar_chart(
            f"{plan['name'] or 'plan'}: {block}",
            [str(i) for i in range(len(densities))],
            [d for d in densities if d is not None],
            x_label="layer",
            y=Axis("density", percent=True, high=1.0),
            dots=recalls if known else (),
            description=f"Density of {block} in each layer",
        )
        dots = f" Dots: recall, the share that it finds of the {block} that matter." if known else ""
        charts.append(
            (chart, f"Share of the {block} that a token runs, by {' and '.join(sorted(kinds))}.{dots}")
        )
    return charts


def table(plans: Sequence[Facts]) -> Table:
    """A row for each plan."""
    rows = []
    for plan in plans:
        evidence = plan["evidence"]
        neurons = evidence.get("neurons", {})
        tokens = evidence.get("tokens", {}).get("verification")
        rows.append(
            [
                plan["name"] or "(no name)",
                ", ".join(sorted({layer["neurons"]["kind"] for layer in plan["layers"]})),
                _figure(neurons.get("density")),
                _figure(evidence.get("heads", {}).get("density")),
                _figure(neurons.get("recall")),
                _figure(neurons.get("precision")),
                _figure(evidence.get("touched_share")),
                _figure(evidence.get("ppl_ratio"), percent=False),
                f"{tokens:,}" if isinstance(tokens, int) else "",
                human_bytes(plan["bytes"]),
            ]
        )
    headers = [
        "plan",
        "neurons by",
        "density",
        "heads",
        "recall",
        "precision",
        "bytes read",
        "ppl ratio",
        "on tokens",
        "predictors",
    ]
    return Table(
        "As each plan's own evidence has it; bytes read: of the weights of the layers, dense is 100%",
        headers,
        rows,
    )


def _density(plan: Facts, block: str, layer: int) -> float | None:
    """What was measured; failing that, what the selector is set to."""
    measured = _evidence(plan, block, layer).get("density")
    selector = plan["layers"][layer][block]
    wanted = 1.0 if selector["kind"] == "dense" else selector.get("density")
    return measured if measured is not None else wanted


def _evidence(plan: Facts, block: str, layer: int) -> Mapping[str, Any]:
    layers = plan["evidence"].get("layers", [])
    found: Mapping[str, Any] = layers[layer].get(block, {}) if layer < len(layers) else {}
    return found


def _figure(value: Any, *, percent: bool = True) -> str:
    if not isinstance(value, (int, float)):
        return ""
    return number(value, percent=True) if percent else f"{value:.4f}"
