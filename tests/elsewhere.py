"""A program that works on a test's lab in a process of its own, which may be killed."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from labapp.bench import Bench

_PRELUDE = """
import sys, time
from dataclasses import replace
from pathlib import Path
from labapp import feedback
from labapp.bench import prepare
from labapp.state import State

work, *arguments = sys.argv[1:]
with feedback.using(feedback.QuietFeedback()):
    bench = replace(prepare(State.open()), work=Path(work))
"""


def start(own: Bench, program: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a program that finds ``bench`` and ``arguments``; its output comes by a pipe."""
    return subprocess.Popen(
        [sys.executable, "-c", _PRELUDE + textwrap.indent(program, "    "), own.work, *arguments],
        stdout=subprocess.PIPE,
        env={**own.engine.environment(), "LABAPP_STATE": str(own.state.folder)},
        text=True,
    )
