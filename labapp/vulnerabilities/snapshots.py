"""A release's fixes in one dated file, for a class without internet."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from labapp.errors import VulnerabilityError
from labapp.vulnerabilities import cache
from labapp.vulnerabilities.apt_sources import Release
from labapp.vulnerabilities.changelogs import from_json, to_json
from labapp.vulnerabilities.fixes import Fixes

FORMAT = 1
"""Files of another format are not read."""


def write(path: Path, fixes: Fixes) -> None:
    """Write fixes to a file, gzipped JSON; equal fixes give equal bytes.

    Raises:
        VulnerabilityError: the file can't be written.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "release": [fixes.release.number, fixes.release.codename],
        "date": fixes.date.isoformat(),
        "updates": {name: to_json(updates) for name, updates in fixes.updates.items()},
        "notes": list(fixes.notes),
        "covers": sorted(fixes.covers or fixes.updates),
    }
    try:
        cache.write(path, content)
    except OSError as error:
        raise VulnerabilityError(
            f"writing the snapshot '{path}': {error.strerror or error}. Name a file in a folder "
            "that is writable."
        ) from error


def read(path: Path) -> Fixes:
    """Read the fixes from a file.

    Raises:
        VulnerabilityError: there is none, or it is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(str(path), error.strerror or str(error)) from error
    return parse(data, str(path))


def parse(data: bytes, name: str) -> Fixes:
    """Read the fixes from a file's bytes.

    Args:
        data: what :func:`write` wrote.
        name: of the file, for the error.

    Raises:
        VulnerabilityError: they are damaged.
    """
    content = cache.parse(data)
    try:
        if content is None or content["format"] != FORMAT:
            raise ValueError("no snapshot of this format")
        return Fixes(
            release=Release(*map(str, content["release"])),
            date=datetime.fromisoformat(content["date"]),
            updates={str(name): from_json(rows) for name, rows in content["updates"].items()},
            notes=tuple(map(str, content["notes"])),
            covers=frozenset(map(str, content["covers"])),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _unreadable(name, "it is damaged, or no snapshot of this lab") from error


def _unreadable(name: str, cause: str) -> VulnerabilityError:
    return VulnerabilityError(
        f"reading the snapshot '{name}': {cause}. A bundle brings one: "
        "'python3 -m labapp bundle load FILE'."
    )
