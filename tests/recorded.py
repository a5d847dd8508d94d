"""Engines that say again what real ones once said, under ``unit/engines``, a folder an engine.

``python3 -m labapp test --engine NAME --record`` writes such a folder. The next engine is a folder,
and a row in the tables of the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from registries import Reply, Seen, serving, told

from labapp.machine import engine as engines
from labapp.machine.engine import Engine
from labapp.state import State

RECORDED = Path(__file__).parent / "unit" / "engines"
ENGINES = sorted(folder.name for folder in RECORDED.iterdir() if folder.is_dir())
CLASSIC = [name for name in ENGINES if (RECORDED / name / "build.err").exists()]
"""Those whose ``docker build`` is not BuildKit."""

_DOCKER = """#!/bin/sh
if [ "$1" = buildx ]; then echo "$BUILDX"; exit; fi
echo "$@" > "$SEEN/arguments"
env > "$SEEN/environment"
cat "$RECORD.txt"
[ ! -e "$RECORD.err" ] || cat "$RECORD.err" >&2
exit "$STATUS"
"""


@contextlib.contextmanager
def engine_that_said(
    name: str, folder: Path, transfer: str = "", also: Callable[[Seen], object] = lambda _: None
) -> Iterator[Engine]:
    """Yield an engine that answers as that one did; to a push or pull with a recording of one.

    What is ``also`` asked may be answered with something to be told as JSON.
    """
    about = json.loads((RECORDED / name / "about.json").read_text())

    def answer(seen: Seen) -> Reply:
        if transfer and re.search(r"/push\?|/create\?", seen.path):
            first, _, rest = (RECORDED / name / f"{transfer}.jsonl").read_bytes().partition(b"\n")
            kind = {"Content-Type": "application/json"}
            status = json.loads(first)["http_status"]
            # What the SDK reads as a stream comes in chunks.
            return Reply(status, rest, kind, chunks=[rest] if status == 200 else None)
        if seen.path.endswith("_ping"):
            return Reply(body=b"OK")
        if (answered := also(seen)) is not None:
            return told(answered)
        found = re.search(r"/(version|info)", seen.path)
        return told(about[found[1]]) if found else told({"message": "no such"}, 404)

    with serving(answer) as served:
        where = {"DOCKER_HOST": f"tcp://{served.address}"}
        engine = engines.find(State.open(folder / "state"), environ=where)
        with contextlib.closing(engine.client):
            yield engine


@contextlib.contextmanager
def engine_that_built(
    name: str,
    build: Path | str,
    folder: Path,
    status: int = 0,
    also: Callable[[Seen], object] = lambda _: None,
) -> Iterator[Engine]:
    """Yield an engine whose ``docker`` prints what was recorded for a build.

    ``folder`` gets that program, and beside it the arguments and the environment that it saw.
    """
    program = folder / "docker"
    program.write_text(_DOCKER)
    program.chmod(0o755)
    variables = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "BUILDX": "" if name in CLASSIC else "github.com/docker/buildx 0.13.1",
        "RECORD": str(RECORDED / name / build),
        "SEEN": str(folder),
        "STATUS": str(status),
    }
    with engine_that_said(name, folder, also=also) as engine:
        # The lab's own id is another one in each test; that of the recorded builds is this one.
        labels = {"labapp.lab": "0123abcd"}
        yield replace(engine, variables=engine.variables | variables, labels=labels)
