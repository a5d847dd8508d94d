"""From a bare Python to the lab's own: what is decided before anything is installed."""

from __future__ import annotations

import ast
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from labapp.machine import bootstrap

PACKAGE = bootstrap.ROOT / "labapp"


@pytest.mark.parametrize("name", ["__init__.py", "__main__.py"])
def test_an_old_python_can_read_what_it_runs(name: str) -> None:
    ast.parse((PACKAGE / name).read_text(encoding="utf-8"), feature_version=(3, 4))


@pytest.mark.parametrize("version", [(2, 7), (3, 6), (3, 10)])
def test_an_old_python_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(PACKAGE / "__main__.py"), run_name="__main__")
    message = str(caught.value.code)
    assert f"{version[0]}.{version[1]}" in message and "3.11" in message


def test_only_the_standard_library_is_needed_before_the_environment_is_there() -> None:
    # -S leaves out site-packages; nothing there, as on a bare machine.
    code = "import labapp, labapp.machine.bootstrap, sys; print('click' in sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, '.'); {code}"]
    answer = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert answer.stdout == "False\n", answer.stderr


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with an environment that has its stamp."""
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    venv = tmp_path / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    bootstrap.stamp(venv, ["test"])
    return venv


def test_an_environment_with_its_stamp_is_ready(venv: Path) -> None:
    assert bootstrap.is_ready(venv, [])
    assert bootstrap.is_ready(venv, ["test"])
    assert not bootstrap.is_ready(venv, ["docs"])


def upgrade_interpreter(venv: Path) -> None:
    python = bootstrap.python_of(venv)
    python.unlink()
    python.symlink_to("/bin/sh")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda venv: (venv.parent / "pyproject.toml").write_text("[project]\nname = 'new'\n"),
        lambda venv: bootstrap.python_of(venv).unlink(),
        upgrade_interpreter,
        lambda venv: (venv / bootstrap.STAMP).unlink(),
        lambda venv: os.truncate(venv / bootstrap.STAMP, 20),
    ],
)
def test_an_environment_that_does_not_fit_is_not_ready(
    venv: Path, break_it: Callable[[Path], object]
) -> None:
    break_it(venv)
    assert not bootstrap.is_ready(venv, [])


def test_a_clone_that_was_moved_is_not_ready(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = venv.parent.rename(venv.parent.with_name("moved"))
    monkeypatch.setattr(bootstrap, "ROOT", moved)
    assert not bootstrap.is_ready(moved / ".venv", [])


def test_packages_that_are_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[project]\n"
        'dependencies = ["pytest>=8", "no-such-package==1", "ruamel.yaml"]\n'
        'optional-dependencies.test = ["another_missing[x]>=2"]\n'
    )
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    assert bootstrap.missing_packages([]) == ["no-such-package"]
    assert bootstrap.missing_packages(["test"]) == ["no-such-package", "another_missing"]
