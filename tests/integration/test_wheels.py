"""Wheels: what is asked for, what counts as complete, and the real pip with a folder of wheels."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_images import make_wheels, wants

from labapp import feedback
from labapp.errors import BaseError
from labapp.feedback import QuietFeedback
from labapp.journey import wheels
from labapp.state import REPOSITORY

AMD64 = "linux/amd64"
WHEELS = ["kiln-3.0-py3-none-any.whl", "spout-2.0-py3-none-any.whl", "teapot-1.0-py3-none-any.whl"]


@pytest.fixture(scope="module", autouse=True)
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Three small wheels, where PIP_FIND_LINKS can have pip look; it looks nowhere else."""
    root = tmp_path_factory.mktemp("index")
    make_wheels(root, *WHEELS)
    with pytest.MonkeyPatch.context() as patch, feedback.using(QuietFeedback()):
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            patch.delenv(name)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        yield str(root)


@pytest.fixture(scope="module")
def application(index: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An application, and its wheels, which the real pip has fetched."""
    folder = tmp_path_factory.mktemp("app")
    wants(folder, "# exact\nteapot==1.0  # brews\n\nspout==2.0\n", "kiln==3.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_FIND_LINKS", index)
        assert fetch(folder) == WHEELS, "to run, and to build"
    return folder


def fetch(application: Path) -> list[str]:
    wheels.fetch(application / "wheels", platform=AMD64)
    return names(application / "wheels")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.whl"))


@pytest.fixture
def filled(application: Path, tmp_path: Path) -> Path:
    """A copy's wheel folder."""
    return Path(shutil.copytree(application, tmp_path / "app")) / "wheels"


def test_a_complete_folder_needs_no_index(filled: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in filled.iterdir()}
    assert fetch(filled.parent) == WHEELS
    assert {path: path.stat().st_mtime_ns for path in filled.iterdir()} == before
    assert not wheels.is_complete(filled, platform="linux/arm64")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (f"wheels/{WHEELS[0]}", "PK"),
        ("wheels/stray-1.0-py3-none-any.whl", ""),
        (f"wheels/{wheels.STAMP}", None),
        (f"wheels/{wheels.STAMP}", '{"python": "3.12"}'),
        ("requirements.txt", "teapot==1.1"),
    ],
)
def test_what_is_not_complete_is_seen(filled: Path, name: str, content: str | None) -> None:
    spoilt = filled.parent / name
    spoilt.unlink() if content is None else spoilt.write_text(content)
    assert not wheels.is_complete(filled, platform=AMD64)


def test_a_failed_fetch_keeps_the_old_wheels_and_the_next_mends(
    filled: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (filled / wheels.STAMP).unlink()
    (filled / "old-1.0-py3-none-any.whl").write_bytes(b"")
    with pytest.raises(BaseError, match=r"kiln==3\.0"):
        fetch(filled.parent)
    assert len(names(filled)) == 4
    monkeypatch.setenv("PIP_FIND_LINKS", index)
    assert fetch(filled.parent) == WHEELS
    assert wheels.is_complete(filled, platform=AMD64)
    assert not [path for path in filled.iterdir() if path.is_dir()]


def test_carried_wheels_are_complete_elsewhere(filled: Path, tmp_path: Path) -> None:
    files = wheels.packed(filled)
    (filled / "old-1.0-py3-none-any.whl").write_bytes(b"")
    wheels.unpack(filled, files | {"../../outside.whl": b""})
    assert not (tmp_path / "outside.whl").exists()
    assert names(filled) == sorted([*WHEELS, "outside.whl"])
    (filled / "outside.whl").unlink()
    assert wheels.is_complete(filled, platform=AMD64)


def test_the_lab_asks_for_exact_versions() -> None:
    wanted = wheels.wanted_by(REPOSITORY / "dockerfiles" / "app")
    assert all("==" in requirement for requirement in wanted)
    assert any(requirement.startswith("setuptools==") for requirement in wanted)
