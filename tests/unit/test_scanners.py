"""What Grype and Trivy print, read as rows: by programs of their names that print such reports."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from labapp.errors import VulnerabilityError
from labapp.feedback import QuietFeedback
from labapp.manifests import Manifest, parse_config, parse_manifest
from labapp.reference import Reference
from labapp.registry.reader import RegistryImage
from labapp.vulnerabilities import scanners

GRYPE: dict[str, Any] = {
    "matches": [
        {
            "vulnerability": {
                "id": "CVE-2025-0001",
                "severity": "High",
                "fix": {
                    "versions": ["3.5.1-1+deb13u1"],
                    "state": "fixed",
                    "available": [{"version": "3.5.1-1+deb13u1", "date": "2025-09-26"}],
                },
            },
            "relatedVulnerabilities": [{"id": "CVE-2025-0001"}],
            "artifact": {
                "name": "libssl3t64",
                "version": "3.5.1-1",
                "upstreams": [{"name": "openssl"}],
            },
        },
        {
            "vulnerability": {
                "id": "GHSA-abcd-efgh-ijkl",
                "severity": "Unknown",
                "fix": {"versions": [], "state": "not-fixed"},
            },
            "relatedVulnerabilities": [{"id": "CVE-2025-0002"}],
            "artifact": {"name": "pip", "version": "25.0", "upstreams": []},
        },
        {
            "vulnerability": {"id": "CVE-2025-0003", "severity": "Low", "fix": {"versions": ["7"]}},
            "artifact": {"name": "linux-libc-dev", "version": "6.12"},
        },
    ],
    "descriptor": {
        "name": "grype",
        "version": "0.99.1",
        "timestamp": "2026-11-23T10:00:00Z",
        "db": {"status": {"schemaVersion": "v6.1.0", "built": "2026-11-22T06:19:17Z"}},
    },
}

TRIVY: dict[str, Any] = {
    "SchemaVersion": 2,
    "Results": [
        {
            "Target": "debian 13",
            "Vulnerabilities": [
                {
                    "VulnerabilityID": "CVE-2025-0001",
                    "PkgName": "libssl3t64",
                    "InstalledVersion": "3.5.1-1",
                    "FixedVersion": "3.5.1-1+deb13u1",
                    "Severity": "HIGH",
                },
                {
                    "VulnerabilityID": "CVE-2025-0004",
                    "PkgName": "bash",
                    "InstalledVersion": "5.2",
                    "Severity": "UNKNOWN",
                },
            ],
        },
        {"Target": "Python", "Vulnerabilities": None},
    ],
}

TRIVY_VERSION: dict[str, Any] = {
    "Version": "0.70.0",
    "VulnerabilityDB": {"Version": 2, "UpdatedAt": "2026-11-22T18:21:44.123456789Z"},
}


@pytest.fixture
def image() -> RegistryImage:
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}}
    raw = json.dumps(config).encode()
    parsed = parse_config(raw)
    manifest = parse_manifest(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": parsed.digest,
                    "size": len(raw),
                },
                "layers": [],
            }
        ).encode()
    )
    assert isinstance(manifest, Manifest)
    return RegistryImage(Reference.parse("localhost:5000/shop/web:1"), manifest, parsed)


Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a program on the PATH that prints what it is given; it keeps its arguments."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name: str, *, prints: object = "", version: object = "", ends_with: int = 0) -> Path:
        texts = [each if isinstance(each, str) else json.dumps(each) for each in (prints, version)]
        log = tmp_path / "arguments"
        program = tmp_path / name
        program.write_text(
            f"#!{sys.executable}\n"
            "import sys\n"
            f"open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
            f"sys.stdout.write({texts!r}['version' in sys.argv])\n"
            f"sys.stderr.write('a line\\nthe database is too old\\n' if {ends_with} else '')\n"
            f"sys.exit({ends_with})\n"
        )
        program.chmod(0o755)
        return log

    return make


def test_grype(install: Install, image: RegistryImage) -> None:
    log = install("grype", prints=GRYPE)
    feedback = QuietFeedback()
    report = scanners.grype(image, feedback=feedback)
    target = f"registry:localhost:5000/shop/web@{image.digest}"
    assert log.read_text() == f"{target} --platform linux/amd64 --output json\n"
    assert feedback.commands == [f"grype {target} --platform linux/amd64 --output json"]
    assert report.source == "Grype 0.99.1"
    assert report.date == datetime(2026, 11, 22, 6, 19, 17, tzinfo=UTC)
    assert (report.missing, report.since_release, report.header_cves) == (1, None, 1)
    assert report.by_month.empty
    rows = report.rows.set_index("cve")
    assert rows["state"].to_dict() == {
        "CVE-2025-0001": "missing",
        "CVE-2025-0002": "no fix yet",
        "CVE-2025-0003": "missing",
    }
    assert rows.loc["CVE-2025-0001"].to_dict() == {
        "package": "libssl3t64",
        "source_package": "openssl",
        "installed": "3.5.1-1",
        "fixed": "3.5.1-1+deb13u1",
        "date": pd.Timestamp("2025-09-26"),
        "state": "missing",
        "source": "Grype 0.99.1",
        "severity": "high",
        "headers": False,
    }
    assert rows.loc["CVE-2025-0002", ["severity", "source_package"]].to_list() == ["", "pip"]


@pytest.mark.parametrize("database", [{"built": "2026-11-22T06:19:17Z"}, None])
def test_grypes_older_reports(install: Install, image: RegistryImage, database: object) -> None:
    descriptor = {**GRYPE["descriptor"], "db": database}
    install("grype", prints={**GRYPE, "descriptor": descriptor})
    report = scanners.grype(image, feedback=QuietFeedback())
    assert report.date.day == (22 if database else 23)


def test_trivy(install: Install, image: RegistryImage) -> None:
    log = install("trivy", prints=TRIVY, version=TRIVY_VERSION)
    report = scanners.trivy(image, feedback=QuietFeedback())
    asked = log.read_text().splitlines()
    assert asked[0].endswith(f"--platform linux/amd64 localhost:5000/shop/web@{image.digest}")
    assert asked[1] == "version --format json"
    assert report.source == "Trivy 0.70.0"
    assert report.date == datetime(2026, 11, 22, 18, 21, 44, tzinfo=UTC)
    rows = report.rows.set_index("cve")
    assert rows["state"].to_dict() == {"CVE-2025-0001": "missing", "CVE-2025-0004": "no fix yet"}
    assert rows["severity"].to_dict() == {"CVE-2025-0001": "high", "CVE-2025-0004": ""}


def test_an_image_without_any(install: Install, image: RegistryImage) -> None:
    install("grype", prints={**GRYPE, "matches": []})
    report = scanners.grype(image, feedback=QuietFeedback())
    assert (report.missing, len(report.rows)) == (0, 0)
    install("trivy", prints={"SchemaVersion": 2}, version=TRIVY_VERSION)
    assert scanners.trivy(image, feedback=QuietFeedback()).missing == 0


NONSENSE = [
    pytest.param("", id="nothing"),
    pytest.param("no JSON", id="no JSON"),
    pytest.param("[]", id="a list"),
    pytest.param("{}", id="an empty object"),
    pytest.param(json.dumps(GRYPE)[:-9], id="cut off"),
    pytest.param("[" * 100_000, id="deep"),
]


@pytest.mark.parametrize(
    "prints",
    [
        *NONSENSE,
        pytest.param({**GRYPE, "matches": [1]}, id="a match that is a number"),
        pytest.param({**GRYPE, "matches": None}, id="no matches"),
        pytest.param({**GRYPE, "matches": [{"vulnerability": {"id": "CVE-1"}}]}, id="no package"),
        pytest.param({**GRYPE, "descriptor": {"version": "1", "timestamp": "soon"}}, id="no date"),
        pytest.param({**GRYPE, "descriptor": {"version": "1", "timestamp": 5}}, id="date a number"),
    ],
)
def test_what_grype_never_prints(install: Install, image: RegistryImage, prints: object) -> None:
    install("grype", prints=prints)
    with pytest.raises(VulnerabilityError, match="what 'grype' printed: it is not the report"):
        scanners.grype(image, feedback=QuietFeedback())


@pytest.mark.parametrize(
    ("prints", "version"),
    [
        *(pytest.param(*case.values, TRIVY_VERSION, id=case.id) for case in NONSENSE),
        pytest.param({**TRIVY, "SchemaVersion": 3}, TRIVY_VERSION, id="a newer schema"),
        pytest.param({**TRIVY, "Results": [{"Vulnerabilities": [{}]}]}, TRIVY_VERSION, id="empty"),
        pytest.param(TRIVY, {"Version": "0.70.0"}, id="a database that was never fetched"),
        pytest.param(TRIVY, "Version: 0.70.0", id="a version that is no JSON"),
    ],
)
def test_what_trivy_never_prints(
    install: Install, image: RegistryImage, prints: object, version: object
) -> None:
    install("trivy", prints=prints, version=version)
    with pytest.raises(VulnerabilityError, match="what 'trivy' printed: it is not the report"):
        scanners.trivy(image, feedback=QuietFeedback())


@pytest.mark.parametrize("scanner", [scanners.grype, scanners.trivy])
def test_a_scanner_that_fails_or_is_not_there(
    install: Install,
    image: RegistryImage,
    scanner: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = scanner.__name__
    with pytest.raises(VulnerabilityError, match=f"there is no '{name}' on the PATH"):
        scanner(image, feedback=QuietFeedback())
    install(name, prints=GRYPE, ends_with=3)
    with pytest.raises(VulnerabilityError, match=r"ended with 3[^\0]*the database is too old"):
        scanner(image, feedback=QuietFeedback())
    monkeypatch.setattr(scanners, "SECONDS", 0.0)
    with pytest.raises(VulnerabilityError, match=r"timed out.*in a terminal\?"):
        scanner(image, feedback=QuietFeedback())
