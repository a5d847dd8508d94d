"""From a bare Python to the lab's own: what is decided before anything is installed."""

from __future__ import annotations

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from labapp.setup import bootstrap, installer

PACKAGE = Path(bootstrap.__file__).parents[1]


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
    assert f"this is Python {version[0]}.{version[1]}" in message
    assert "3.11 or newer" in message
    assert "labapp start" in message


def test_only_the_standard_library_is_needed_before_the_environment_is_there() -> None:
    # -S leaves out site-packages; nothing there, as on a bare machine.
    code = "import labapp, labapp.setup.bootstrap, sys; print('click' in sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, '.'); {code}"]
    answer = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert answer.stdout == "False\n", answer.stderr


PIP_LISTING = """\
:env:.disable-pip-version-check='1'
:env:.find-links='/srv/wheels /mnt/wheels'
global.index-url='https://packages.example/simple'
global.find-links='/elsewhere'
global.cert='/etc/ssl/ours.pem'
download.no-index='true'
install.extra-index-url='file:///a file:///b'
nonsense
"""


def test_pips_settings_are_read() -> None:
    assert installer.parse_pip_settings(PIP_LISTING) == {
        "disable-pip-version-check": "1",
        "find-links": "/srv/wheels /mnt/wheels",
        "index-url": "https://packages.example/simple",
        "cert": "/etc/ssl/ours.pem",
        "extra-index-url": "file:///a file:///b",
    }
    assert installer.parse_pip_settings("") == {}


def test_uv_gets_the_indexes_of_pip() -> None:
    settings = installer.uv_settings(installer.parse_pip_settings(PIP_LISTING), {})
    assert settings == {
        "UV_NATIVE_TLS": "1",
        "UV_DEFAULT_INDEX": "https://packages.example/simple",
        "UV_INDEX": "file:///a file:///b",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/srv/wheels,/mnt/wheels",
        "SSL_CERT_FILE": "/etc/ssl/ours.pem",
    }


def test_what_the_user_set_for_uv_is_kept() -> None:
    environ = {"UV_DEFAULT_INDEX": "https://mine.example", "REQUESTS_CA_BUNDLE": "/ca.pem"}
    settings = installer.uv_settings({"index-url": "https://other.example"}, environ)
    assert settings == {"UV_NATIVE_TLS": "1", "SSL_CERT_FILE": "/ca.pem"}
    assert installer.uv_settings({}, {"SSL_CERT_FILE": "/x", "REQUESTS_CA_BUNDLE": "/y"}) == {
        "UV_NATIVE_TLS": "1"
    }


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


def change_project(venv: Path) -> None:
    (venv.parent / "pyproject.toml").write_text("[project]\nname = 'new'\n")


def lose_interpreter(venv: Path) -> None:
    bootstrap.python_of(venv).unlink()


def upgrade_interpreter(venv: Path) -> None:
    python = bootstrap.python_of(venv)
    python.unlink()
    python.symlink_to("/bin/sh")


def lose_stamp(venv: Path) -> None:
    (venv / bootstrap.STAMP).unlink()


def cut_stamp(venv: Path) -> None:
    path = venv / bootstrap.STAMP
    path.write_text(path.read_text()[:20])


def change_stamp(venv: Path) -> None:
    (venv / bootstrap.STAMP).write_text(json.dumps(["not", "a", "stamp"]))


@pytest.mark.parametrize(
    "break_it",
    [
        change_project,
        lose_interpreter,
        upgrade_interpreter,
        lose_stamp,
        cut_stamp,
        change_stamp,
    ],
)
def test_an_environment_that_does_not_fit_is_not_ready(venv: Path, break_it) -> None:  # type: ignore[no-untyped-def]
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
