"""The environment that a fresh clone makes for itself: real ones, whole, broken and cut off."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from labapp.setup import bootstrap, installer

BASE_PYTHON = str(Path(sys.base_prefix, "bin", f"python3.{sys.version_info[1]}"))
INSTALLING = "Installing the lab's packages"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the project in which the lab has been started once."""
    folder = tmp_path_factory.mktemp("clone") / "with a space"
    files = ["pyproject.toml", "README.md", "LICENSE"]
    shutil.copytree(bootstrap.ROOT / "labapp", folder / "labapp")
    for name in files:
        shutil.copy(bootstrap.ROOT / name, folder)
    first = run(folder)
    assert first.returncode == 0, first.stderr
    assert "Making a Python environment" in first.stderr
    yield folder
    # Hundreds of megabytes, which pytest would keep for three runs.
    shutil.rmtree(folder)


def command(clone: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [BASE_PYTHON, "-m", "labapp", "--help"],
        cwd=clone,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(clone: Path) -> subprocess.CompletedProcess[str]:
    with command(clone) as process:
        stdout, stderr = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def test_a_second_start_goes_straight_on(clone: Path) -> None:
    began = time.monotonic()
    again = run(clone)
    seconds = time.monotonic() - began
    assert (again.returncode, again.stderr) == (0, "")
    assert "hands-on lab" in again.stdout
    # 0.4 s on the machine that this was written on; an installation takes ten times that.
    assert seconds < 3


def test_two_starts_at_once_over_a_broken_environment(clone: Path) -> None:
    bootstrap.python_of(clone / ".venv").unlink()
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(run, [clone, clone]))
    assert [answer.returncode for answer in answers] == [0, 0], answers
    assert sorted(answer.stderr.count("Making a Python environment") for answer in answers) == [
        0,
        1,
    ]
    assert sum(answer.stderr.count("waiting for it") for answer in answers) == 1


def test_a_start_after_one_that_was_killed_in_the_middle(clone: Path) -> None:
    (clone / "pyproject.toml").open("a").write("\n# changed\n")
    with command(clone) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if INSTALLING in line:
                break
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (clone / ".venv" / bootstrap.STAMP).exists()
    again = run(clone)
    assert again.returncode == 0, again.stderr
    assert "hands-on lab" in again.stdout


def test_a_package_that_was_deleted_is_put_back(clone: Path) -> None:
    [click] = (clone / ".venv").glob("lib/python*/site-packages/click")
    shutil.rmtree(click)
    again = run(clone)
    assert again.returncode == 0, again.stderr
    assert "'click' is gone from .venv" in again.stderr
    assert "hands-on lab" in again.stdout


def test_pip_does_it_where_uv_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    (project / "tiny").mkdir(parents=True)
    (project / "tiny" / "__init__.py").write_text("")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "tiny"\nversion = "1"\n'
    )
    venv = tmp_path / "venv"
    subprocess.run([BASE_PYTHON, "-m", "venv", str(venv)], check=True)
    # uv asks an index that nobody serves; pip has settings of its own.
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    installer.install(venv, str(project))
    check = [str(installer.python_of(venv)), "-c", "import tiny; print(tiny.__file__)"]
    answer = subprocess.run(check, capture_output=True, text=True, cwd=tmp_path)
    assert answer.stdout.strip() == str(project / "tiny" / "__init__.py")


def test_an_index_that_nobody_serves_is_an_error_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = tmp_path / "venv"
    subprocess.run([BASE_PYTHON, "-m", "venv", str(venv)], check=True)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(installer.SetUpError, match=r"installing the packages: .*Behind a proxy"):
        installer.install(venv, str(bootstrap.ROOT))
