"""Grype and Trivy, where they are installed: their JSON, read as rows.

Sources: Grype's JSON (its package ``grype/presenter/models``: ``matches``, ``descriptor``); Trivy's
report, schema version 2 (its package ``pkg/types``: ``Results``, ``Vulnerabilities``).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from labapp import feedback
from labapp.errors import VulnerabilityError
from labapp.inside.fixes import MISSING, Report, Row, is_headers, table
from labapp.registry.client import RegistryImage

NO_FIX = "no fix yet"
"""The state of a CVE that a scanner knows, and nobody has fixed for this package."""

BLIND = (
    "It sees what its database matches by name and version, as of the database's date; programs "
    "that no package manager lists, and whether the vulnerable code is ever run, it can't see."
)
SECONDS = 900.0


def ask(scanner: str, image: RegistryImage) -> Report:
    """Let ``grype`` or ``trivy`` read an image from its registry."""
    platform = ["--platform", str(image.config.platform)]
    try:
        if scanner == "grype":
            about = _json(["grype", f"registry:{image.pinned}", *platform, "--output", "json"])
            name = f"Grype {about['descriptor']['version']}"
            built, found = about["descriptor"]["db"]["status"]["built"], list(_matches(about))
        else:
            options = ["--image-src", "remote", "--scanners", "vuln", "--format", "json", "--quiet"]
            report = _json(["trivy", "image", *options, *platform, str(image.pinned)])
            about = _json(["trivy", "version", "--format", "json"])
            name, built = f"Trivy {about['Version']}", about["VulnerabilityDB"]["UpdatedAt"]
            found = list(_vulnerabilities(report))
        rows = [
            Row(
                cve, package, source, installed, fixed, None, MISSING if fixed else NO_FIX, name,
                severity.lower().replace("unknown", ""), is_headers(package),
            )
            for cve, package, source, installed, fixed, severity in found
        ]  # fmt: skip
        date = datetime.fromisoformat(built[:19].rstrip("Z")).replace(tzinfo=UTC)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise VulnerabilityError(
            f"reading what '{scanner}' printed: it is not the report that the lab knows "
            f"({error!r}). Take another version of it, or another source."
        ) from error
    return Report(table(rows), name, date, BLIND, knows_release=False)


def _matches(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for match in report["matches"]:
        found, artifact = match["vulnerability"], match["artifact"]
        # A GitHub advisory names the CVE that it is about.
        ids = [found["id"], *(entry["id"] for entry in match.get("relatedVulnerabilities") or [])]
        yield (
            next((id for id in ids if id.startswith("CVE-")), ids[0]),
            artifact["name"],
            (artifact.get("upstreams") or [artifact])[0]["name"],
            artifact["version"],
            ", ".join((found.get("fix") or {}).get("versions") or []),
            found.get("severity") or "",
        )


def _vulnerabilities(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    if report["SchemaVersion"] != 2:
        raise ValueError(f"its schema version is {report['SchemaVersion']}, not 2")
    for result in report.get("Results") or []:
        for entry in result.get("Vulnerabilities") or []:
            fixed, severity = entry.get("FixedVersion") or "", entry.get("Severity") or ""
            package, installed = entry["PkgName"], entry["InstalledVersion"]
            yield entry["VulnerabilityID"], package, package, installed, fixed, severity


def _json(argv: Sequence[str]) -> Any:
    """Run a scanner, and return what it prints."""
    asking = f"asking {argv[0].capitalize()}"
    program = shutil.which(argv[0])
    if program is None:
        raise VulnerabilityError(
            f"{asking}: there is no '{argv[0]}' on the PATH. Install it, or take Debian's own "
            "fixes or a snapshot."
        )
    feedback.command(argv)
    try:
        done = subprocess.run(
            [program, *argv[1:]], stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VulnerabilityError(
            f"{asking}: {error}. Does '{' '.join(argv)}' work in a terminal?"
        ) from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-5:]
        raise VulnerabilityError(
            f"{asking}: it ended with {done.returncode}. Mend what its last lines tell of, or take "
            "another source:\n  " + "\n  ".join(said)
        )
    return json.loads(done.stdout)
