"""One model's results on one HTML page: quality, speed and what lies between, from the files that other verbs wrote."""

from __future__ import annotations

from dejavu.results_page.collection import Collection, collect
from dejavu.results_page.page import describe, render_page

__all__ = ["Collection", "collect", "describe", "render_page"]
