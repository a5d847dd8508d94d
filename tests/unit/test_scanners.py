"""What Grype and Trivy print, read as rows: by programs of their names that print such reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from made_images import made

from labapp.errors import VulnerabilityError
from labapp.inside import scanners
from labapp.inside.fixes import Report
from labapp.inside.known import known

GRYPE: dict[str, Any] = {
    "matches": [
        {
            "vulnerability": {
                "id": "CVE-2025-0001",
                "severity": "High",
                "fix": {"versions": ["3.5.1-1+deb13u1"], "state": "fixed"},
            },
            "relatedVulnerabilities": [{"id": "CVE-2025-0001"}],
            "artifact": {"name": "libssl3t64", "version": "1", "upstreams": [{"name": "openssl"}]},
        },
        {
            "vulnerability": {"id": "GHSA-abcd-efgh-ijkl", "severity": "Unknown"},
            "relatedVulnerabilities": [{"id": "CVE-2025-0002"}],
            "artifact": {"name": "pip", "version": "25.0", "upstreams": []},
        },
        {
            "vulnerability": {"id": "CVE-2025-0003", "severity": "Low", "fix": {"versions": ["7"]}},
            "artifact": {"name": "linux-libc-dev", "version": "6.12"},
        },
    ],
    "descriptor": {"version": "0.99.1", "db": {"status": {"built": "2026-11-22T06:19:17Z"}}},
}
FOUND = {"PkgName": "libssl3t64", "InstalledVersion": "1", "Severity": "HIGH"}
FIXED = {"VulnerabilityID": "CVE-2025-0001", "FixedVersion": "3.5.1-1+deb13u1", **FOUND}
UNFIXED = {"VulnerabilityID": "CVE-2025-0004", **FOUND, "Severity": "UNKNOWN"}
TRIVY: dict[str, Any] = {
    "SchemaVersion": 2,
    "Results": [
        {"Target": "debian 13", "Vulnerabilities": [FIXED, UNFIXED]},
        {"Target": "Python", "Vulnerabilities": None},
    ],
}
VERSION = {
    "Version": "0.70.0",
    "VulnerabilityDB": {"Version": 2, "UpdatedAt": "2026-11-22T18:21:44.123456789Z"},
}

IMAGE = made({"bin/sh": b"#"})
Scan = Callable[..., Report]


@pytest.fixture
def scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scan:
    """Ask a scanner that prints what it is given; it keeps its arguments."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def scan(name: str, prints: object, version: object = VERSION, *, ends_with: int = 0) -> Report:
        for file, text in (("prints", prints), ("version", version)):
            (tmp_path / file).write_text(text if isinstance(text, str) else json.dumps(text))
        program = tmp_path / name
        program.write_text(
            f'#!/bin/sh\ncd {tmp_path}\necho "$*" >> asked\n'
            'case "$1" in version) /bin/cat version;; *) /bin/cat prints;; esac\n'
            f"[ {ends_with} = 0 ] || echo the database is too old >&2\nexit {ends_with}\n"
        )
        program.chmod(0o755)
        return known(IMAGE, folder=tmp_path, source=name)

    return scan


def test_grype(scan: Scan, tmp_path: Path) -> None:
    report = scan("grype", GRYPE)
    target = f"registry:r.test/shop/web@{IMAGE.image.digest}"
    asked = (tmp_path / "asked").read_text()
    assert asked == f"{target} --platform linux/amd64 --output json\n"
    assert report.date == datetime(2026, 11, 22, 6, 19, 17, tzinfo=UTC)
    assert (report.missing, report.since_release, report.header_cves) == (1, None, 1)
    assert report.by_month.empty
    rows = report.rows.set_index("cve").drop(columns="date")
    assert list(rows["state"]) == ["missing", "missing", "no fix yet"]
    assert rows.loc["CVE-2025-0001"].to_dict() == {
        "package": "libssl3t64",
        "source_package": "openssl",
        "installed": "1",
        "fixed": "3.5.1-1+deb13u1",
        "state": "missing",
        "source": "Grype 0.99.1",
        "severity": "high",
        "headers": False,
    }
    assert rows.loc["CVE-2025-0002", ["severity", "source_package"]].to_list() == ["", "pip"]
    assert scan("grype", {**GRYPE, "matches": []}).missing == 0


def test_trivy(scan: Scan, tmp_path: Path) -> None:
    report = scan("trivy", TRIVY)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0].endswith(f"--platform linux/amd64 r.test/shop/web@{IMAGE.image.digest}")
    assert asked[1] == "version --format json"
    assert report.source == "Trivy 0.70.0"
    assert report.date == datetime(2026, 11, 22, 18, 21, 44, tzinfo=UTC)
    rows = report.rows.set_index("cve")
    assert rows["state"].to_dict() == {"CVE-2025-0001": "missing", "CVE-2025-0004": "no fix yet"}
    assert rows["severity"].to_dict() == {"CVE-2025-0001": "high", "CVE-2025-0004": ""}
    assert scan("trivy", {"SchemaVersion": 2}).missing == 0


@pytest.mark.parametrize(
    ("scanner", "prints", "version"),
    [
        *(("grype", text, "") for text in ("", "no JSON", "[]", "{}", "[" * 100_000)),
        ("trivy", json.dumps(TRIVY)[:-9], VERSION),
        ("grype", {**GRYPE, "matches": [{"vulnerability": {"id": "CVE-1"}}]}, ""),
        ("grype", {**GRYPE, "descriptor": {"version": "1", "db": {"status": {"built": 5}}}}, ""),
        ("trivy", {**TRIVY, "SchemaVersion": 3}, VERSION),
        ("trivy", {**TRIVY, "Results": [{"Vulnerabilities": [{}]}]}, VERSION),
        ("trivy", TRIVY, {"Version": "0.70.0"}),
        ("trivy", TRIVY, "Version: 0.70.0"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_scanners_never_print(
    scan: Scan, scanner: str, prints: object, version: object
) -> None:
    with pytest.raises(VulnerabilityError, match=f"'{scanner}'"):
        scan(scanner, prints, version)


@pytest.mark.parametrize("scanner", ["grype", "trivy"])
def test_a_scanner_that_fails_or_is_not_there(
    scan: Scan, tmp_path: Path, scanner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(VulnerabilityError, match=r"3[^\0]*the database is too old"):
        scan(scanner, GRYPE, ends_with=3)
    monkeypatch.setattr(scanners, "SECONDS", 0.0)
    with pytest.raises(VulnerabilityError, match="timed out"):
        scan(scanner, GRYPE)
    (tmp_path / scanner).unlink()
    with pytest.raises(VulnerabilityError, match=f"'{scanner}'"):
        known(IMAGE, folder=tmp_path, source=scanner)
