"""Rows in, a labelled figure with alternative text out."""

from labapp.charts.bars import (
    build_times,
    layers,
    pull_times,
    pushes,
    shared_layers,
    sizes,
    variant_sizes,
)
from labapp.charts.cves import cves_since_release
from labapp.charts.events import conversation, tag_history
from labapp.charts.figure import Chart, show
from labapp.charts.grids import classroom, journey
from labapp.charts.surface import surface
from labapp.charts.treemap import where_bytes_are

__all__ = [
    "Chart",
    "build_times",
    "classroom",
    "conversation",
    "cves_since_release",
    "journey",
    "layers",
    "pull_times",
    "pushes",
    "shared_layers",
    "show",
    "sizes",
    "surface",
    "tag_history",
    "variant_sizes",
    "where_bytes_are",
]
