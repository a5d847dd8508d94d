"""Rows in, a labelled figure with alternative text out."""

from labapp.charts.bars import build_times, layers, pushes, sizes
from labapp.charts.events import conversation, tag_history
from labapp.charts.figure import Chart, show

__all__ = [
    "Chart",
    "build_times",
    "conversation",
    "layers",
    "pushes",
    "show",
    "sizes",
    "tag_history",
]
