"""Engines that say again what real ones once said: recorded under ``unit/engines``, by engine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from labapp.machine.engine import Engine

ENGINES = Path(__file__).parent / "unit" / "engines"
CLASSIC, OVERLAY, CONTAINERD = "docker-20.10", "docker-26.1", "docker-26.1-containerd"

_DOCKER = """#!/bin/sh
echo "$@" > "$SEEN/arguments"
env > "$SEEN/environment"
cat "$RECORD.txt"
[ ! -e "$RECORD.err" ] || cat "$RECORD.err" >&2
exit "$STATUS"
"""


def recorded_engine(name: str, *, variables: dict[str, str] | None = None, **client: Any) -> Engine:
    """Return an engine with a stand-in for its client; what is not given fails where it is used."""
    engine = Engine(
        client=SimpleNamespace(ping=lambda: True, **client),  # type: ignore[arg-type]
        host="unix:///nowhere",
        source="test",
        name="Docker",
        version=name.removeprefix("docker-"),
        platform="linux/amd64",
        store="containerd" if name == CONTAINERD else "classic",
        data_root="",
        variables=variables or {},
        labels={"labapp.lab": "0123abcd"},
    )
    # Otherwise the command line of this machine would be asked.
    engine.__dict__["builder"] = "classic" if name == CLASSIC else "buildx 0.13"
    return engine


def building_engine(name: str, label: str, folder: Path, *, status: int = 0) -> Engine:
    """Return an engine whose ``docker`` prints what was recorded for a build.

    ``folder`` gets that program, and beside it the arguments and the environment that it saw.
    """
    program = folder / "docker"
    program.write_text(_DOCKER)
    program.chmod(0o755)
    variables = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "RECORD": str(ENGINES / name / label),
        "SEEN": str(folder),
        "STATUS": str(status),
    }
    return recorded_engine(name, variables=variables)


def transferring_engine(name: str, label: str) -> Engine:
    """Return an engine that answers a push or a pull with a recorded stream."""

    def events(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        for line in (ENGINES / name / f"{label}.jsonl").read_text().splitlines():
            yield json.loads(line)

    return recorded_engine(name, api=SimpleNamespace(push=events, pull=events))


def layers(name: str) -> list[str]:
    """Return the digests of the layers of the image that was pushed and pulled, lowest first."""
    return list(json.loads((ENGINES / name / "image.json").read_text())["layers"])
