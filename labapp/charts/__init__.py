"""Rows in, a labelled figure with alternative text out; a LabError tells what a chart takes."""

from labapp.charts.bars import build_times as build_times
from labapp.charts.bars import layers as layers
from labapp.charts.bars import pull_times as pull_times
from labapp.charts.bars import pushes as pushes
from labapp.charts.bars import shared_layers as shared_layers
from labapp.charts.bars import sizes as sizes
from labapp.charts.bars import surface as surface
from labapp.charts.bars import variant_sizes as variant_sizes
from labapp.charts.diagrams import conversation as conversation
from labapp.charts.diagrams import cves_since_release as cves_since_release
from labapp.charts.diagrams import journey as journey
from labapp.charts.diagrams import outcomes as outcomes
from labapp.charts.diagrams import tag_history as tag_history
from labapp.charts.figure import Chart as Chart
from labapp.charts.treemap import where_bytes_are as where_bytes_are
