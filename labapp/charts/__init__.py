"""Rows in, a labelled figure with alternative text out."""

from labapp.charts.bars import layers, pushes, sizes
from labapp.charts.builds import build_times
from labapp.charts.classroom import classroom
from labapp.charts.cves import cves_since_release
from labapp.charts.events import conversation, tag_history
from labapp.charts.exposure import surface
from labapp.charts.figure import Chart, show
from labapp.charts.journey import journey
from labapp.charts.pulls import pull_times
from labapp.charts.sharing import shared_layers
from labapp.charts.treemap import where_bytes_are
from labapp.charts.variants import variant_sizes

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
