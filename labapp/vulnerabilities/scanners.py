"""Grype and Trivy, where they are installed: their JSON, read as rows.

Sources: Grype's JSON (its package ``grype/presenter/models``: ``matches``, ``descriptor``); Trivy's
report, schema version 2 (its package ``pkg/types``: ``Results``, ``Vulnerabilities``).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from labapp.errors import VulnerabilityError
from labapp.feedback import Feedback
from labapp.registry.reader import RegistryImage
from labapp.vulnerabilities.fixes import MISSING, is_headers, table
from labapp.vulnerabilities.report import Report

NO_FIX = "no fix yet"
"""The state of a CVE that a scanner knows, and nobody has fixed for this package."""

BLIND = (
    "It sees what its database matches by name and version, as of the database's date; programs "
    "that no package manager lists, and whether the vulnerable code is ever run, it can't see."
)

ANSWER_LIMIT = 512 * 1024 * 1024
"""The longest report that is read, in bytes."""

SECONDS = 900.0


def grype(image: RegistryImage, *, feedback: Feedback) -> Report:
    """Ask Grype.

    Args:
        image: where the image is; Grype reads it from its registry.
        feedback: where the command is told.

    Raises:
        VulnerabilityError: it isn't installed, failed, or answered what isn't its report.
    """
    target = f"registry:{image.pinned}"
    found = _run(["grype", target, *_platform(image), "--output", "json"], feedback)
    try:
        descriptor = found["descriptor"]
        name = f"Grype {descriptor['version']}"
        rows = [_grype_row(match, name) for match in found["matches"]]
        database = descriptor.get("db") or {}
        # Where the date is has changed with the database's schema.
        built = (database.get("status") or database).get("built")
        return _report(rows, name, built or descriptor["timestamp"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _nonsense("grype", error) from error


def trivy(image: RegistryImage, *, feedback: Feedback) -> Report:
    """Ask Trivy.

    Args:
        image: where the image is; Trivy reads it from its registry.
        feedback: where the command is told.

    Raises:
        VulnerabilityError: it isn't installed, failed, or answered what isn't its report.
    """
    options = ["--image-src", "remote", "--scanners", "vuln", "--format", "json", "--quiet"]
    command = ["trivy", "image", *options, *_platform(image), str(image.pinned)]
    found = _run(command, feedback)
    about = _run(["trivy", "version", "--format", "json"], feedback)
    try:
        if found["SchemaVersion"] != 2:
            raise ValueError(f"its schema version is {found['SchemaVersion']}, not 2")
        name = f"Trivy {about['Version']}"
        results = found.get("Results") or []
        rows = [
            _trivy_row(entry, name)
            for result in results
            for entry in result.get("Vulnerabilities") or []
        ]
        return _report(rows, name, about["VulnerabilityDB"]["UpdatedAt"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _nonsense("trivy", error) from error


def _grype_row(match: dict[str, Any], source: str) -> tuple[object, ...]:
    found, artifact = match["vulnerability"], match["artifact"]
    related = [entry["id"] for entry in match.get("relatedVulnerabilities") or []]
    fix = found.get("fix") or {}
    versions = fix.get("versions") or []
    dates = [entry.get("date") for entry in fix.get("available") or []]
    upstreams = artifact.get("upstreams") or []
    return _row(
        # A GitHub advisory names the CVE that it is about.
        cve=next((id for id in [found["id"], *related] if id.startswith("CVE-")), found["id"]),
        package=artifact["name"],
        source_package=upstreams[0]["name"] if upstreams else artifact["name"],
        installed=artifact["version"],
        fixed=", ".join(versions),
        date=next(iter(filter(None, dates)), None),
        source=source,
        severity=found.get("severity") or "",
    )


def _trivy_row(entry: dict[str, Any], source: str) -> tuple[object, ...]:
    return _row(
        cve=entry["VulnerabilityID"],
        package=entry["PkgName"],
        source_package=entry["PkgName"],
        installed=entry["InstalledVersion"],
        fixed=entry.get("FixedVersion") or "",
        date=None,
        source=source,
        severity=entry.get("Severity") or "",
    )


def _row(
    *,
    cve: str,
    package: str,
    source_package: str,
    installed: str,
    fixed: str,
    date: str | None,
    source: str,
    severity: str,
) -> tuple[object, ...]:
    when = pd.to_datetime(date, utc=True).tz_localize(None) if date else pd.NaT
    state = MISSING if fixed else NO_FIX
    known = "" if severity.lower() == "unknown" else severity.lower()
    headers = is_headers(package)
    return cve, package, source_package, installed, fixed, when, state, source, known, headers


def _report(rows: Iterable[tuple[object, ...]], source: str, date: str) -> Report:
    when = datetime.fromisoformat(date[:19].rstrip("Z")).replace(tzinfo=UTC)
    return Report(
        rows=table(list(rows)), source=source, date=when, blind=BLIND, knows_release=False
    )


def _platform(image: RegistryImage) -> list[str]:
    return ["--platform", str(image.config.platform)]


def _run(command: Sequence[str], feedback: Feedback) -> dict[str, Any]:
    """Run a scanner and return the JSON that it prints."""
    program = shutil.which(command[0])
    if program is None:
        raise VulnerabilityError(
            f"asking {command[0].capitalize()}: there is no '{command[0]}' on the PATH. Install "
            "it, or take Debian's own fixes or a snapshot."
        )
    feedback.command(command)
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise VulnerabilityError(
                f"asking {command[0].capitalize()}: {error}. Does '{' '.join(command)}' work in a "
                "terminal?"
            ) from error
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-5:]
            raise VulnerabilityError(
                f"asking {command[0].capitalize()}: it ended with {done.returncode}. Mend what its "
                "last lines tell of, or take another source:\n  " + "\n  ".join(said)
            )
        output.seek(0)
        try:
            text = output.read(ANSWER_LIMIT + 1)
            found = json.loads(text) if len(text) <= ANSWER_LIMIT else None
            if not isinstance(found, dict):
                raise ValueError("no JSON object")
        except (ValueError, RecursionError) as error:
            raise _nonsense(command[0], error) from error
    return found


def _nonsense(program: str, error: Exception) -> VulnerabilityError:
    return VulnerabilityError(
        f"reading what '{program}' printed: it is not the report that the lab knows ({error!r}). "
        "Take another version of it, or another source."
    )
