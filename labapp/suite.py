"""The test suite, run in a lab apart, so that a learner's running lab is not disturbed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from labapp import bench
from labapp.engine import own_engine
from labapp.errors import LabError
from labapp.feedback import Feedback, QuietFeedback
from labapp.state import State
from labapp.system import apt_packages

OWN_ENGINE = "own_engine"
"""The marker of tests that make a root or an engine of their own: root on Debian or Ubuntu."""


def folder() -> Path:
    """Return the state folder of the tests' own lab."""
    named = os.environ.get("LABAPP_STATE_TEST")
    if named:
        return Path(named).expanduser().absolute()
    mine = State.open().folder
    return mine.with_name(f"{mine.name}-test")


def run(pytest_args: Sequence[str], *, feedback: Feedback) -> int:
    """Prepare the tests' lab, run pytest, and return its exit code.

    Args:
        pytest_args: what pytest is given; unit tests alone need no engine, and get none.
        feedback: where the preparation is told. Nothing is printed after pytest's own lines.

    Raises:
        LabError: the lab can't be prepared.
    """
    state = State.open(folder())
    os.environ["LABAPP_STATE"] = str(state.folder)
    if apt_packages.why_not() is None:
        os.environ.setdefault("LABAPP_BASES", "debian")
    prepared = None
    if not any(argument.startswith("tests/unit") for argument in pytest_args):
        prepared = bench.prepare(state, clean=True, feedback=feedback)
    command = [sys.executable, "-m", "pytest"]
    if not any(argument.startswith("tests/") for argument in pytest_args):
        # Chapters wait for builds most of the time: they run beside the rest, in a second lab.
        command += ["-n", "2"]
    reason = own_engine.can_start()
    if reason is not None:
        feedback.say(f"Left out: the tests that make an engine or a root. Why: {reason}")
        command += ["-m", f"not {OWN_ENGINE}"]
    with subprocess.Popen([*command, *pytest_args], cwd=bench.REPOSITORY) as process:
        # At Ctrl-C, pytest gets the same signal, and cleans up after itself.
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()
        code = process.wait()
    if prepared is not None:
        with contextlib.suppress(LabError):
            prepared.stop(feedback=QuietFeedback())
    return code
