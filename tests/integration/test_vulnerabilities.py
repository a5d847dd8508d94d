"""Debian's own fixes for the slim base image, from the mirror that it names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from labapp import contents, vulnerabilities
from labapp.bench import Bench
from labapp.contents import Contents
from labapp.feedback import QuietFeedback
from labapp.reference import Reference
from labapp.registry.reader import RegistryImage


@dataclass(frozen=True)
class Stale:
    """An image whose packages are older than they are in the one that was read."""

    image: RegistryImage
    packages: pd.DataFrame
    os_release: dict[str, str]
    apt_sources: tuple[str, ...]


@pytest.fixture(scope="module")
def read(bench: Bench, slim: Reference, feedback: QuietFeedback) -> Contents:
    folder = bench.state.path("cache", "layers")
    return contents.read(bench.registry, slim, folder=folder, feedback=feedback)


def test_the_mirror_of_a_real_image(
    read: Contents, tmp_path: Path, feedback: QuietFeedback
) -> None:
    report = vulnerabilities.known(read, folder=tmp_path, source="auto", feedback=feedback)
    assert report.source == "Debian's own fixes"
    assert report.notes == ()
    assert timedelta(0) < datetime.now(UTC) - report.date < timedelta(days=30)
    assert report.since_release is not None
    # OpenSSL and Expat have had security updates again and again; the slim base holds both.
    assert report.since_release >= max(report.missing, 20)
    assert {"openssl", "expat"} <= set(report.rows["source_package"])
    assert report.header_cves == 0, "slim has no kernel headers"
    assert report.rows["cve"].map(re.compile(r"CVE-\d{4}-\d{4,}").fullmatch).all()
    assert report.rows["date"].min() > pd.Timestamp("2025-08-09")
    assert list(report.by_month["cves"])[-1] == report.since_release

    # The same image as built on release day: it lacks all that was fixed since.
    packages = read.packages.copy()
    for source in ("openssl", "expat"):
        of_release = {"openssl": "3.5.1-1", "expat": "2.7.1-2"}[source]
        packages.loc[packages["source"] == source, "source_version"] = of_release
    stale = Stale(read.image, packages, dict(read.os_release), read.apt_sources)
    old = vulnerabilities.known(stale, folder=tmp_path, feedback=feedback)
    fixed = report.rows[report.rows["source_package"].isin(["openssl", "expat"])]
    assert old.missing - report.missing == fixed[fixed["state"] == "since release"]["cve"].nunique()
    assert old.since_release == report.since_release
