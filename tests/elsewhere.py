"""A program that works on a test's lab in a process of its own, which may be killed."""

from __future__ import annotations

import subprocess
import sys

from labapp.bench import Bench

_BENCH = """
import sys, time
from pathlib import Path
from labapp.bases import Base
from labapp.bench import Bench
from labapp.engine import find
from labapp.feedback import QuietFeedback
from labapp.reference import Reference
from labapp.registry.server import RegistryServer
from labapp.state import State

work, base, repository, *arguments = sys.argv[1:]
state = State.open()
engine = find(state)
server = RegistryServer(engine=engine, state=state)
reference = Reference.parse(base)
bases = (Base("python:3.13-slim", reference, reference.digest, "test"),)
bench = Bench(state, engine, server, server.registry(), bases, Path(repository), Path(work))
"""


def start(own: Bench, program: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a program that finds ``bench`` and ``arguments``; its output comes by a pipe."""
    given = [str(own.work), str(own.base("python:3.13-slim")), str(own.repository), *arguments]
    return subprocess.Popen(
        [sys.executable, "-c", _BENCH + program, *given],
        stdout=subprocess.PIPE,
        env={**own.engine.environment(), "LABAPP_STATE": str(own.state.folder)},
        text=True,
    )
