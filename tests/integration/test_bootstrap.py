"""The environment that a fresh clone makes for itself: real ones, whole, broken and cut off."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from labapp.machine import bootstrap

BASE_PYTHON = str(Path(sys.base_prefix, "bin", f"python3.{sys.version_info[1]}"))
MAKING = "Making a Python environment"
NOBODY = "http://127.0.0.1:9/simple"

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "labapp"
version = "1"
dependencies = ["click"]
optional-dependencies.test = ["iniconfig"]
"""

COMMANDS = """
import click, importlib.util
def main(argv):
    print("working", argv, importlib.util.find_spec("iniconfig") is not None)
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the lab's first lines and few packages, in which it has been started once."""
    folder = tmp_path_factory.mktemp("clone") / "with a space"
    for name in ("__init__.py", "__main__.py", "machine/__init__.py", "machine/bootstrap.py"):
        file = folder / "labapp" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(bootstrap.ROOT / "labapp" / name, file)
    (folder / "labapp" / "cli.py").write_text(COMMANDS)
    (folder / "pyproject.toml").write_text(PROJECT)
    assert MAKING in run(folder)[1]
    return folder


def command(clone: Path, word: str = "start", **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [BASE_PYTHON, "-m", "labapp", word],
        cwd=clone,
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(clone: Path, word: str = "start", code: int = 0, **variables: str) -> tuple[str, str]:
    """Run a command of the lab, and see that it works or is refused; return what it printed."""
    with command(clone, word, **variables) as process:
        stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == code and "Traceback" not in stderr, stderr
    assert (f"working ['{word}']" in stdout) is (code == 0)
    return stdout, stderr


def test_a_second_start_goes_straight_on_and_tests_bring_their_own_packages(clone: Path) -> None:
    assert run(clone) == ("working ['start'] False\n", "")
    stdout, stderr = run(clone, "test")
    assert "True" in stdout and MAKING not in stderr


def test_two_starts_at_once_over_a_broken_environment(clone: Path) -> None:
    bootstrap.python_of(clone / ".venv").unlink()
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(run, [clone, clone]))
    assert sorted(stderr.count(MAKING) for _, stderr in answers) == [0, 1]


def test_after_one_that_was_killed_in_the_middle_pip_does_it_where_uv_cannot(clone: Path) -> None:
    (clone / "pyproject.toml").open("a").write("\n# changed\n")
    with command(clone) as process:
        next(line for line in process.stderr or () if "packages" in line)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGKILL)
    assert not bootstrap.is_ready(clone / ".venv", [])
    # uv asks an index that nobody serves; pip has settings of its own.
    assert "pip" in run(clone, UV_DEFAULT_INDEX=NOBODY, UV_NO_CACHE="1")[1]


def test_a_package_that_was_deleted_is_put_back(clone: Path) -> None:
    [click] = (clone / ".venv").glob("lib/python*/site-packages/click")
    shutil.rmtree(click)
    assert "'click'" in run(clone, code=1)[1]
    assert MAKING not in run(clone)[1]
    assert run(clone)[1] == ""


def test_an_index_that_nobody_serves_is_an_error_with_advice(clone: Path) -> None:
    (clone / ".venv" / bootstrap.STAMP).unlink()
    pip = {"PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "PIP_CONFIG_FILE": os.devnull}
    pip |= {"PIP_INDEX_URL": NOBODY, "PIP_RETRIES": "0"}
    # Who tells pip of another index has left the public one, and uv isn't sent there either.
    assert "proxy" in run(clone, "start", 1, **pip)[1]


def test_when_an_environment_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    project, venv = tmp_path / "pyproject.toml", tmp_path / ".venv"
    project.write_text("[project]\n")
    python = bootstrap.python_of(venv)
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    stamp = venv / bootstrap.STAMP

    def ready(*extras: str) -> bool:
        return bootstrap.is_ready(bootstrap.ROOT / ".venv", extras)

    assert not ready()
    bootstrap.stamp(venv, ["test"])
    assert (ready(), ready("test"), ready("docs")) == (True, True, False)
    python.unlink()  # As the system's Python is upgraded, and then taken away.
    for change in (
        lambda: python.symlink_to("/bin/sh"),
        lambda: python.unlink(),
        lambda: project.write_text("[project]\nname = 'new'\n"),
        lambda: os.truncate(stamp, 20),
        lambda: monkeypatch.setattr(bootstrap, "ROOT", tmp_path.rename(f"{tmp_path}-moved")),
    ):
        bootstrap.stamp(venv, [])
        assert ready()
        change()
        assert not ready()
