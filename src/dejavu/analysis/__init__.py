"""Does contextual sparsity exist in this model? Figures, a verdict in plain words, and a report."""

from __future__ import annotations

from dejavu.analysis.measure import SCHEMA, analyze, workload
from dejavu.analysis.pieces import Pieces, split_pieces
from dejavu.analysis.record import describe_run, write_analysis
from dejavu.analysis.report import render_report

__all__ = [
    "SCHEMA",
    "Pieces",
    "analyze",
    "describe_run",
    "render_report",
    "split_pieces",
    "workload",
    "write_analysis",
]
