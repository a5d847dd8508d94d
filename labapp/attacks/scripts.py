"""A delivery script, called once a step, as CI systems run jobs."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from labapp.errors import AttackError

STEPS = ("build", "inspect", "push", "pin", "deploy")
"""What a delivery script is asked for, in this order."""

STEP_SECONDS = 600.0
"""How long a step may take."""

TIMED_OUT = 124
"""The exit code of a step that took too long, as of the command ``timeout``."""

OUTPUT_LIMIT = 200_000
"""How many characters of a step's output are kept: its end."""


@dataclass(frozen=True)
class Step:
    """What a step of a delivery did.

    Attributes:
        name: of the step.
        code: the script's exit code; 0 where it says that all went well.
        output: what it printed, errors included.
        seconds: how long it took.
    """

    name: str
    code: int
    output: str = field(repr=False)
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line that it printed; for a command that failed in Python, the command's own."""
        text = self.output.rstrip()
        before, _, traceback = text.rpartition("Traceback (most recent call last):")
        if "CalledProcessError: " in traceback:
            text = before.rstrip() or text
        return text.rpartition("\n")[2].strip()


def command_for(script: Path) -> list[str]:
    """Return the beginning of the command line that runs a script: Python or a shell.

    Raises:
        AttackError: there is no such file, it is neither, or this machine has no shell.
    """
    doing = f"running the delivery script '{script}'"
    if not script.is_file():
        raise AttackError(f"{doing}: there is no such file. Write it first, or copy another.")
    if script.suffix == ".py":
        return [sys.executable, str(script)]
    if script.suffix != ".sh":
        raise AttackError(f"{doing}: its name ends in neither '.py' nor '.sh'. Rename it.")
    shell = shutil.which("bash") or shutil.which("sh")
    if shell is None:
        raise AttackError(f"{doing}: this machine has no 'sh'. Write it in Python: 'deliver.py'.")
    return [shell, str(script)]


def run_step(
    script: Path, name: str, environment: Mapping[str, str], *, seconds: float = STEP_SECONDS
) -> Step:
    """Run a script for one step, in the folder where it is.

    Args:
        script: the script.
        name: the step, which is its one argument.
        environment: all of its environment variables.
        seconds: how long it may take; what it started is ended with it then.

    Raises:
        AttackError: it can't be started.
    """
    script = script.absolute()
    argv = [*command_for(script), name]
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            argv,
            cwd=script.parent,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise AttackError(
            f"running the delivery script '{script}': {error.strerror or error}. Make it readable."
        ) from error
    with process:
        try:
            output, _ = process.communicate(timeout=seconds)
            code = process.returncode
        except subprocess.TimeoutExpired:
            _end(process)
            output = process.communicate()[0] + f"\n(ended: it took more than {seconds:.0f} s)\n"
            code = TIMED_OUT
        except BaseException:
            _end(process)
            raise
    return Step(name, code, output[-OUTPUT_LIMIT:], time.monotonic() - began)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process with all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [
            *psutil.Process(process.pid).children(recursive=True),
            psutil.Process(process.pid),
        ]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
