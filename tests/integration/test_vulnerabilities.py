"""Debian's own fixes for the slim base image, from the mirror that it names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd

from labapp.bench import Bench
from labapp.feedback import QuietFeedback
from labapp.inside import image as contents
from labapp.inside.known import known
from labapp.reference import Reference


def test_the_mirror_of_a_real_image(
    bench: Bench, slim: Reference, tmp_path: Path, feedback: QuietFeedback
) -> None:
    layers = bench.state.path("cache", "layers")
    image = contents.read(bench.registry, bench.registry.image(slim), folder=layers)
    report = known(image, folder=tmp_path)
    assert report.source == "Debian's own fixes"
    assert report.notes == ()
    assert timedelta(0) < datetime.now(UTC) - report.date < timedelta(days=30)
    # OpenSSL and Expat have had security updates again and again, the C library point releases;
    # the slim base holds all three.
    assert report.since_release >= max(report.missing, 20)
    assert {"openssl", "expat", "glibc"} <= set(report.rows["source_package"])
    assert report.rows["date"].min() > pd.Timestamp("2025-08-09")
    assert list(report.by_month["cves"])[-1] == report.since_release
