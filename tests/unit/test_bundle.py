"""Bundles as files: written, read back, and refused where they are not whole."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import pytest

from labapp import bundle, feedback
from labapp.bundle import Bundle
from labapp.errors import BaseError, DamagedContent
from labapp.feedback import QuietFeedback
from labapp.journey import debian
from labapp.reference import Reference
from labapp.registry.client import RegistryImage
from labapp.registry.manifests import Manifest, Platform, digest_of, parse_config
from labapp.state import State

LAYER = random.Random(1).randbytes(3_000_000)
"""Three megabytes of it: more than one chunk."""

NAME = Reference("localhost", "base/python", "3.13")


FILES = {"a-1.0.whl": b"wheel", "b-1.0.whl": b""}


class Held:
    """An image in memory, to be saved."""

    address = "localhost"

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        platform = Platform("linux", "amd64")
        self.made = debian.image(debian.recipe("python:3.13"), [LAYER], self._keep, platform)

    def _keep(self, chunks: Iterable[bytes]) -> tuple[str, int]:
        data = b"".join(chunks)
        self.blobs[digest_of(data)] = data
        return digest_of(data), len(data)

    def manifest(self, repository: str, identifier: str) -> Manifest:
        return self.made

    def image(
        self, reference: Reference | str, *, platform: Platform | None = None
    ) -> RegistryImage:
        return RegistryImage(NAME, self.made, parse_config(self.blobs[self.made.config.digest]))

    def open_blob(
        self, repository: str, digest: str, *, size: int | None = None
    ) -> Generator[bytes]:
        data = self.blobs[digest]
        yield from (data[at : at + 1000] for at in range(0, len(data), 1000))


HELD = Held()
PACKED = HELD.blobs[HELD.made.layers[0].digest]


def write(path: Path) -> Path:
    bundle.write(path, {str(NAME): (HELD, NAME), "twice": (HELD, NAME)}, FILES)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "lab.tar")


def verify(path: Path) -> tuple[int, int]:
    seen: list[tuple[int, int]] = []
    Bundle(path).verify(lambda done, total: seen.append((done, total)))
    return seen[-1]


def test_what_was_written_is_read_back_byte_for_byte(path: Path) -> None:
    found = Bundle(path)
    length = sum(map(len, (*HELD.blobs.values(), *FILES.values())))
    assert verify(path) == (length, length)
    assert found.image(NAME).manifest.raw == HELD.made.raw
    assert found.image(NAME).config.digest == HELD.made.config.digest
    for digest, data in HELD.blobs.items():
        assert b"".join(found.open_blob("", digest, size=len(data))) == data
    assert found.files() == FILES


def test_the_same_images_make_the_same_file_which_others_may_read(
    path: Path, tmp_path: Path
) -> None:
    assert write(tmp_path / "again.tar").read_bytes() == path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o644


def test_it_is_an_image_layout_and_holds_each_blob_once(path: Path) -> None:
    with tarfile.open(path) as tar:
        names = tar.getnames()
        assert json.load(tar.extractfile("oci-layout") or io.BytesIO())["imageLayoutVersion"]
        index = json.load(tar.extractfile("index.json") or io.BytesIO())
    assert [entry["digest"] for entry in index["manifests"]] == [HELD.made.digest] * 2
    for digest in (*HELD.blobs, HELD.made.digest, *map(digest_of, FILES.values())):
        assert names.count(f"blobs/{digest.replace(':', '/')}") == 1


def test_writing_replaces_a_file_only_when_it_is_complete(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full_disk(*_: object, **__: object) -> Generator[bytes]:
        yield b"x"
        raise OSError(28, "No space left")

    monkeypatch.setattr(HELD, "open_blob", full_disk)
    with pytest.raises(BaseError, match=str(path)):
        write(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_writing_into_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="none"):
        bundle.write(tmp_path / "none" / "lab.tar", {}, {})


def _cut_off(kept: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])


def _alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(PACKED[:4096]) + 5_000] ^= 1
    path.write_bytes(data)


def _empty_tar(path: Path) -> None:
    with tarfile.open(path, "w"):
        pass


def _other_index(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("index.json")
        member.size = 2
        tar.addfile(member, io.BytesIO(b"[]"))


def _without_layer(path: Path) -> None:
    left_out = f"blobs/{digest_of(PACKED).replace(':', '/')}"
    with tarfile.open(path) as old, tarfile.open(path.with_name("new"), "w") as new:
        for member in old:
            if member.name != left_out:
                new.addfile(member, old.extractfile(member))
    path.with_name("new").replace(path)


@pytest.mark.parametrize(
    ("spoil", "fact"),
    [
        *((_cut_off(kept), "lab.tar") for kept in (0.0, 0.001, 0.3, 0.9, 0.995)),
        (_alter, digest_of(PACKED)),
        (_empty_tar, "lab.tar"),
        (_other_index, "lab.tar"),
        (_without_layer, digest_of(PACKED).removeprefix("sha256:")),
        (lambda path: path.write_bytes(b"PK\x03\x04" * 500), "lab.tar"),
        (lambda path: path.unlink(), "lab.tar"),
        (lambda path: None, "base/registry"),  # It is whole, and has none.
        (lambda path: bundle.write(path, {}, {bundle.FIXES: b"damaged"}), bundle.FIXES),
    ],
)
def test_what_can_not_be_used_changes_nothing(
    path: Path, tmp_path: Path, spoil: Callable[[Path], object], fact: str
) -> None:
    spoil(path)
    state = State.open(tmp_path / "state")
    before = list(state.folder.iterdir())
    with feedback.using(QuietFeedback()), pytest.raises(DamagedContent, match=fact):
        bundle.load(state, path, wheel_folder=tmp_path / "wheels")
    assert list(state.folder.iterdir()) == before
    assert not (tmp_path / "wheels").exists()


def test_an_image_that_it_does_not_hold(path: Path) -> None:
    with pytest.raises(DamagedContent, match=r"base/python:3\.14"):
        Bundle(path).image(Reference("localhost", "base/python", "3.14"))


def test_strange_members_are_left_alone(path: Path, tmp_path: Path) -> None:
    with tarfile.open(path, "a") as tar:
        for name, kind in (("../outside", tarfile.REGTYPE), ("/etc/x", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    verify(path)
    assert not (tmp_path.parent / "outside").exists()
