"""From a bare Python to the lab's own: ``.venv`` is made in the clone, and the lab goes on inside.

Only the standard library is used here. A stamp in ``.venv`` tells that everything is in place, so
that the second start costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The clone."""

STAMP = "labapp-stamp.json"


def main(argv: Sequence[str]) -> int:
    """Run a command of the lab in an environment that has everything, and return its exit code."""
    extras = ["test"] if argv[:1] == ["test"] else []
    venv = ROOT / ".venv"
    ready = is_ready(venv, extras)
    mine = _inside(venv) or _inside(Path(os.environ.get("CONDA_PREFIX") or venv))
    try:
        if (ready and _inside(venv)) or (mine and not missing_packages(extras)):
            return _command_line(venv, argv)
        if not ready:
            _make(venv, extras)
        # Go on in the environment, in place of this process.
        command = [str(python_of(venv)), "-m", "labapp", *argv]
        if os.name == "nt":  # Windows has no exec. At Ctrl-C, the other one cleans up after itself.
            with subprocess.Popen(command) as process:
                with contextlib.suppress(KeyboardInterrupt):
                    process.wait()
                return process.wait()
        os.execv(command[0], command)
    except KeyboardInterrupt:
        say("interrupted; the next start goes on from here.")
        return 130


def is_ready(venv: Path, extras: Sequence[str]) -> bool:
    """Tell whether an environment has everything: its stamp fits, and its Python is still there."""
    try:
        marks, known = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(marks == _marks(venv)) and {*known} >= {*extras}


def stamp(venv: Path, extras: Sequence[str]) -> None:
    """Put the stamp into an environment that has everything, these extras included."""
    (venv / STAMP).write_text(json.dumps([_marks(venv), [*extras]]), encoding="utf-8")


def _marks(venv: Path) -> list[str]:
    """Return what an environment depends on: when one of these changes, it is made again."""
    python, project = python_of(venv), (ROOT / "pyproject.toml").read_bytes()
    # The interpreter's real place changes when the system's Python is upgraded.
    interpreter = os.path.realpath(python) if python.exists() else ""
    return [str(ROOT), interpreter, hashlib.sha256(project).hexdigest()]


def missing_packages(extras: Sequence[str]) -> list[str]:
    """Return the required packages that the running Python does not have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    more = [project["optional-dependencies"][extra] for extra in extras]
    wanted = sum(more, project["dependencies"])
    names = [re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in wanted]
    return [name for name in names if not any(importlib.metadata.distributions(name=name))]


def python_of(venv: Path) -> Path:
    """Return the path of an environment's Python."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def say(text: str) -> None:
    """Print one line for the user, apart from what a command prints."""
    print(f"labapp: {text}", file=sys.stderr, flush=True)


def _command_line(venv: Path, argv: Sequence[str]) -> int:
    try:
        return int(importlib.import_module("labapp.cli").main([*argv]) or 0)
    except ModuleNotFoundError as error:
        if not _inside(venv):
            raise
        (venv / STAMP).unlink(missing_ok=True)
        gone = f"running a command: the package '{error.name}' is gone from '{venv}'"
        sys.exit(f"labapp: {gone}. Run it again: everything is then installed anew.")


def _make(venv: Path, extras: Sequence[str]) -> None:
    with _locked():
        if is_ready(venv, extras):
            return
        if not _works(venv):
            say("Making a Python environment in .venv (this once).")
            if not (importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv")):
                _install_ensurepip()
            command = [sys.executable, "-m", "venv", "--clear", str(venv)]
            _run(command, "making the environment", "Clone the lab into a folder of your own.")
        _fill(venv, extras)


def _install_ensurepip() -> None:
    """Install Debian's part of the standard library that makes environments."""
    package = f"python3.{sys.version_info[1]}-venv"
    doing = f"making the environment: the Python '{sys.executable}' lacks 'ensurepip'"
    if shutil.which("apt-get") is None or not sys.executable.startswith("/usr/bin/"):
        sys.exit(f"labapp: {doing}. Use one from python.org or your system's packages.")
    advice = f"Install it: 'sudo apt-get install {package}', then start the lab again."
    if os.geteuid() != 0:
        sys.exit(f"labapp: {doing}. {advice}")
    say(f"Installing {package}, which makes Python environments.")
    os.environ.setdefault("DEBIAN_FRONTEND", "noninteractive")
    subprocess.run(["apt-get", "update", "--quiet=2"])
    command = ["apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends", package]
    _run(command, doing, advice)


def _fill(venv: Path, extras: Sequence[str]) -> None:
    """Install the lab's packages in place of whatever half of them is there; then put the stamp.

    uv does it in seconds, where pip takes a minute. Each finds packages by its own settings: where
    pip is told of another index than the public one, and uv isn't, pip does it.
    """
    say("Installing the lab's packages: JupyterLab, pandas, matplotlib and what they need.")
    (venv / STAMP).unlink(missing_ok=True)
    python = [str(python_of(venv)), "-m"]
    options = [] if sys.stderr.isatty() else ["--quiet"]
    project = ["--editable", f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)]
    pip = [*python, "pip", "install", "--disable-pip-version-check", *options]
    uv = [*python, "uv", "pip", "install", "--reinstall", *options]
    environ = {"UV_NATIVE_TLS": "1", **os.environ, "VIRTUAL_ENV": str(venv)}
    ways = ([*pip, "uv"], [*uv, *project])
    told = subprocess.run([*python, "pip", "config", "list"], capture_output=True).stdout
    elsewhere = re.search(rb"\.(index-url|no-index)=", told)
    uv_may = elsewhere is None or any(name.startswith("UV_") for name in os.environ)
    if not uv_may or any(subprocess.run(way, env=environ).returncode for way in ways):
        say("Installing with pip, which takes a minute or two.")
        advice = "Set a proxy, or an index of your own, for pip; then try again."
        _run([*pip, "--force-reinstall", *project], "installing the packages", advice)
    stamp(venv, extras)


def _run(command: Sequence[str], doing: str, advice: str) -> None:
    """Run a command whose output the user sees; where it fails, say what to do, and end."""
    if status := subprocess.run(command).returncode:
        said = f"'{' '.join(command)}' ended with {status}; its last lines are above."
        sys.exit(f"labapp: {doing}: {said} {advice}")


def _works(venv: Path) -> bool:
    """Tell whether an environment's Python starts, is new enough and has a pip that does."""
    code = "import sys, pip._internal.cli.main; sys.exit(sys.version_info < (3, 11))"
    with contextlib.suppress(OSError):
        return subprocess.run([python_of(venv), "-c", code], capture_output=True).returncode == 0
    return False


def _inside(environment: Path) -> bool:
    return Path(sys.prefix).resolve() == environment.resolve()


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Hold the clone's lock, which ends with this process whatever happens to it."""
    with (ROOT / "pyproject.toml").open("r+b") as file:
        if sys.platform != "win32":  # Two first starts at once are not kept apart there.
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say("Another start is making the environment; waiting for it.")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
