"""From a bare Python to the lab's own: ``.venv`` is made in the clone, and the lab goes on inside.

Only the standard library is used here. A stamp in ``.venv`` tells that everything is in place, so
that the second start costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from labapp.setup.installer import SetUpError, install, need_ensurepip, python_of, run, say

ROOT = Path(__file__).resolve().parents[2]
"""The clone."""

STAMP = "labapp-stamp.json"
LOCK = "labapp.lock"
REPAIRED = "LABAPP_REPAIRED"
"""Set once packages were installed again, so that a second failure is told and not mended."""


def main(argv: Sequence[str]) -> int:
    """Run a command of the lab, in an environment that has everything it needs.

    Args:
        argv: the command and its arguments.

    Returns:
        The exit code.
    """
    extras = ["test"] if argv[:1] == ["test"] else []
    venv = ROOT / ".venv"
    inside = Path(sys.prefix).resolve() == venv.resolve()
    try:
        if inside and is_ready(venv, extras):
            return _command_line(venv, argv)
        if (inside or _in_conda()) and not missing_packages(extras):
            return _command_line(venv, argv)
        if not is_ready(venv, extras):
            _make(venv, extras)
        return _hand_over(venv, argv)
    except SetUpError as error:
        print(f"labapp: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("labapp: interrupted; the next start goes on from here.", file=sys.stderr)
        return 130


def is_ready(venv: Path, extras: Sequence[str]) -> bool:
    """Tell whether an environment has everything: its stamp fits, and its Python is still there.

    Args:
        venv: the environment's folder.
        extras: names of optional dependencies that are needed.
    """
    try:
        found = json.loads((venv / STAMP).read_text(encoding="utf-8"))
        known = set(found.pop("extras"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return found == _marks(venv) and known >= set(extras)


def stamp(venv: Path, extras: Sequence[str]) -> None:
    """Put the stamp into an environment that has everything.

    Args:
        venv: the environment's folder.
        extras: names of the optional dependencies that it has.
    """
    draft = venv / f"{STAMP}.draft"
    draft.write_text(json.dumps({**_marks(venv), "extras": [*extras]}), encoding="utf-8")
    draft.replace(venv / STAMP)


def missing_packages(extras: Sequence[str]) -> list[str]:
    """Return the required packages that the running Python does not have.

    Args:
        extras: names of optional dependencies that are needed.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    missing = []
    for requirement in wanted:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return missing


def _command_line(venv: Path, argv: Sequence[str]) -> int:
    try:
        code = importlib.import_module("labapp.cli").main([*argv])
    except ModuleNotFoundError as error:
        inside = Path(sys.prefix).resolve() == venv.resolve()
        known = (error.name or "").startswith("labapp") or os.environ.get(REPAIRED)
        if known or not inside:
            raise
        say(f"The package '{error.name}' is gone from .venv; installing everything again.")
        with _locked(venv):
            _fill(venv, ["test"] if argv[:1] == ["test"] else [], again=True)
        os.environ[REPAIRED] = "1"
        return _hand_over(venv, argv)
    return int(code or 0)


def _hand_over(venv: Path, argv: Sequence[str]) -> int:
    command = [str(python_of(venv)), "-m", "labapp", *argv]
    if os.name != "nt":
        sys.stdout.flush()
        os.execv(command[0], command)
    # Windows has no exec: the parent waits, and leaves Ctrl-C to the child.
    with subprocess.Popen(command) as child:
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                return child.wait()


def _make(venv: Path, extras: Sequence[str]) -> None:
    try:
        venv.mkdir(exist_ok=True)
    except OSError as error:
        raise SetUpError(
            f"making '{venv}': {error.strerror}. Clone the lab into a folder of your own."
        ) from error
    with _locked(venv):
        if is_ready(venv, extras):
            return
        if not _works(venv):
            _make_anew(venv)
        try:
            # Without a stamp, an installation was cut off: what seems to be there may be half.
            _fill(venv, extras, again=not (venv / STAMP).exists())
        except SetUpError:
            if Path(sys.prefix).resolve() == venv.resolve():
                raise
            say("That failed; making the environment anew.")
            _make_anew(venv)
            _fill(venv, extras)


def _make_anew(venv: Path) -> None:
    say("Making a Python environment in .venv (this once).")
    need_ensurepip()
    for entry in venv.iterdir():
        if entry.name != LOCK:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    run([sys.executable, "-m", "venv", str(venv)], doing="making the environment")


def _fill(venv: Path, extras: Sequence[str], *, again: bool = False) -> None:
    """Install the lab's packages, and then put the stamp that says so."""
    (venv / STAMP).unlink(missing_ok=True)
    install(venv, str(ROOT) + (f"[{','.join(extras)}]" if extras else ""), again=again)
    stamp(venv, extras)


def _marks(venv: Path) -> dict[str, str | None]:
    """Return what an environment depends on: when one of these changes, it is made again."""
    project = (ROOT / "pyproject.toml").read_bytes()
    return {
        "clone": str(ROOT),
        "interpreter": _interpreter(venv),
        "pyproject": hashlib.sha256(project).hexdigest(),
    }


def _interpreter(venv: Path) -> str | None:
    """Return the Python behind an environment; it changes when the system's is upgraded."""
    python = python_of(venv)
    if os.name != "nt":
        return os.path.realpath(python) if python.exists() else None
    try:
        settings = (venv / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return None
    home = re.search(r"^home\s*=\s*(.+)$", settings, re.MULTILINE)
    version = re.search(r"^version\s*=\s*(.+)$", settings, re.MULTILINE)
    base = Path(home[1].strip(), "python.exe") if home else python
    return f"{base} {version[1].strip() if version else ''}" if base.exists() else None


def _works(venv: Path) -> bool:
    """Tell whether an environment's Python starts, is new enough and has pip."""
    check = [str(python_of(venv)), "-c", "import sys, pip; sys.exit(sys.version_info < (3, 11))"]
    if not python_of(venv).exists():
        return False
    return subprocess.run(check, capture_output=True).returncode == 0


def _in_conda() -> bool:
    prefix = os.environ.get("CONDA_PREFIX")
    return bool(prefix) and Path(sys.prefix).resolve() == Path(str(prefix)).resolve()


@contextlib.contextmanager
def _locked(venv: Path) -> Iterator[None]:
    """Hold the environment's lock, which ends with this process whatever happens to it."""
    with (venv / LOCK).open("a+b") as file:
        if not _try_lock(file, wait=False):
            say("Another start is making the environment; waiting for it.")
            while not _try_lock(file, wait=True):
                pass
        yield


def _try_lock(file: IO[bytes], *, wait: bool) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            # Waiting means ten tries, a second apart.
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
