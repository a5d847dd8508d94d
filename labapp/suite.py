"""The test suite, run in a lab apart, so that a learner's running lab is not disturbed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from labapp import feedback
from labapp.bench import prepare
from labapp.errors import LabError
from labapp.machine import own_engine, root
from labapp.state import REPOSITORY, State

OWN_ENGINE = "own_engine"
"""The marker of tests that make a root or an engine of their own: root on Debian or Ubuntu."""


SECOND = "-chapters"
"""How the name of the folder of the tests' second lab ends, in which the chapters run."""


def folder() -> Path:
    """Return the state folder of the tests' own lab."""
    named = os.environ.get("LABAPP_STATE_TEST")
    if named:
        return Path(named).expanduser().absolute()
    mine = State.open().folder
    return mine.with_name(f"{mine.name}-test")


def run(pytest_args: Sequence[str]) -> int:
    """Prepare the tests' lab, run pytest, and return its exit code.

    Unit tests alone need no engine, and get none. Nothing is printed after pytest's own lines.
    """
    state = State.open(folder())
    os.environ["LABAPP_STATE"] = str(state.folder)
    if root.why_no_packages() is None:
        os.environ.setdefault("LABAPP_BASES", "debian")
    prepared = None
    if not any(argument.startswith("tests/unit") for argument in pytest_args):
        prepared = prepare(state, clean=True)
    command = [sys.executable, "-m", "pytest"]
    if not any(argument.startswith("tests/") for argument in pytest_args):
        # Chapters wait for builds most of the time: they run beside the rest, in a second lab.
        command += ["-n", "2"]
    reason = own_engine.can_start()
    if reason is not None:
        feedback.say(f"Left out: the tests that make an engine or a root. Why: {reason}")
        command += ["-m", f"not {OWN_ENGINE}"]
    with subprocess.Popen([*command, *pytest_args], cwd=REPOSITORY) as process:
        # At Ctrl-C, pytest gets the same signal, and cleans up after itself.
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()
        code = process.wait()
    if prepared is not None:
        with contextlib.suppress(LabError), feedback.using(feedback.QuietFeedback()):
            prepared.stop()
    return code
