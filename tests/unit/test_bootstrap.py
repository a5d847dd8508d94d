"""From a bare Python to the lab's own: what is decided before anything is installed."""

from __future__ import annotations

import ast
import os
import runpy
import sys
from pathlib import Path

import pytest

from labapp.machine import bootstrap

PACKAGE = bootstrap.ROOT / "labapp"


@pytest.mark.parametrize("version", [(2, 7), (3, 6), (3, 10)])
def test_an_old_python_reads_what_it_runs_and_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    for name in ("__init__.py", "__main__.py"):
        ast.parse((PACKAGE / name).read_text(encoding="utf-8"), feature_version=(3, 4))
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(PACKAGE / "__main__.py"), run_name="__main__")
    message = str(caught.value.code)
    assert f"{version[0]}.{version[1]}" in message and "3.11" in message


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
