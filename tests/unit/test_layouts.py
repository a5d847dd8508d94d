"""Image layouts in a file: written, read back, and refused where they are not whole."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from labapp.bases.layouts import Layout, LayoutWriter
from labapp.errors import DamagedContent, NotInRegistry
from labapp.manifests import (
    OCI_CONFIG,
    OCI_LAYER,
    Descriptor,
    Manifest,
    Platform,
    digest_of,
    parse_manifest,
)
from labapp.manifests.assembly import build_config, build_manifest

LAYER = bytes(range(256)) * 12_000
"""Three megabytes: more than one chunk."""

NAME = "base/python:3.13"


def image() -> tuple[Manifest, bytes]:
    config = build_config(platform=Platform("linux", "amd64"), diff_ids=[digest_of(LAYER)])
    raw = build_manifest(
        Descriptor(OCI_CONFIG, digest_of(config), len(config)),
        [Descriptor(OCI_LAYER, digest_of(LAYER), len(LAYER))],
    )
    manifest = parse_manifest(raw)
    assert isinstance(manifest, Manifest)
    return manifest, config


def write(path: Path) -> Path:
    manifest, config = image()
    with path.open("wb") as file, LayoutWriter(file) as writer:
        writer.add_blob(manifest.config.digest, len(config), [config])
        pieces = (LAYER[at : at + 1000] for at in range(0, len(LAYER), 1000))
        writer.add_blob(digest_of(LAYER), len(LAYER), pieces)
        writer.add_image(NAME, manifest, load_as="docker.io/labapp/registry:0123")
        writer.add_file("extra/wheels/teapot-1.0-py3-none-any.whl", b"PK")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "images.tar")


def verify(path: Path) -> int:
    seen: list[int] = []
    Layout(path).verify(progress=lambda done, total: seen.append(done))
    return seen[-1]


def test_what_was_written_is_read_back(path: Path) -> None:
    manifest, config = image()
    layout = Layout(path)
    assert verify(path) == layout.blob_bytes == len(LAYER) + len(config) + len(manifest.raw)
    assert layout.images == {NAME: manifest.digest}
    assert layout.manifest("base/python", "3.13") == manifest
    assert layout.manifest("base/python", manifest.digest) == manifest
    assert layout.read_blob("base/python", manifest.config.digest) == config
    assert b"".join(layout.open_blob("base/python", digest_of(LAYER))) == LAYER
    assert layout.files("extra/wheels") == ["extra/wheels/teapot-1.0-py3-none-any.whl"]
    assert layout.read_file(layout.files("extra/wheels")[0]) == b"PK"


def test_the_same_images_make_the_same_file(path: Path, tmp_path: Path) -> None:
    assert write(tmp_path / "again.tar").read_bytes() == path.read_bytes()


def test_docker_load_finds_its_own_index(path: Path) -> None:
    manifest, _ = image()
    (loadable,) = json.loads(Layout(path).read_file("manifest.json"))
    assert loadable["RepoTags"] == ["docker.io/labapp/registry:0123"]
    assert loadable["Layers"] == ["blobs/" + digest_of(LAYER).replace(":", "/")]
    assert loadable["Config"] == "blobs/" + manifest.config.digest.replace(":", "/")


def test_a_blob_is_written_once(tmp_path: Path) -> None:
    with (tmp_path / "x.tar").open("wb") as file, LayoutWriter(file) as writer:
        for _ in range(2):
            writer.add_blob(digest_of(b"x"), 1, [b"x"])
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert [name for name in tar.getnames() if "blobs" in name] == [
            "blobs/" + digest_of(b"x").replace(":", "/")
        ]


@pytest.mark.parametrize("chunks", [[b"ab"], [b"abc", b"d"], []], ids=["short", "long", "none"])
def test_a_blob_of_another_length_is_refused(tmp_path: Path, chunks: list[bytes]) -> None:
    with (
        pytest.raises(DamagedContent, match="does not have the 3 bytes"),
        (tmp_path / "x.tar").open("wb") as file,
        LayoutWriter(file) as writer,
    ):
        writer.add_blob(digest_of(b"abc"), 3, chunks)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.9, 0.995])
def test_a_file_that_was_cut_off_is_refused(path: Path, kept: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DamagedContent, match="nothing was changed"):
        verify(path)


def test_an_altered_blob_is_found(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(LAYER[:4096]) + 1_000_000
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedContent, match=r"sha256:[0-9a-f]{64} does not match its digest"):
        verify(path)


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/passwd",
        "blobs/sha256/../../../outside",
        "extra/wheels/../../outside",
        "extra/wheels/a/b",
        "blobs/sha256/" + "0" * 63,
        "blobs/sha512/" + "0" * 128,
        "readme.txt",
    ],
)
def test_a_path_that_does_not_belong_into_a_layout_is_refused(path: Path, name: str) -> None:
    _append(path, lambda tar: tar.addfile(tarfile.TarInfo(name)))
    with pytest.raises(DamagedContent, match="does not belong into one"):
        Layout(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_only_files_are_accepted(path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("blobs/sha256/" + "0" * 64)
    link.type, link.linkname = kind, "/etc/passwd"
    _append(path, lambda tar: tar.addfile(link))
    with pytest.raises(DamagedContent, match="does not belong into one"):
        Layout(path)


def test_a_file_that_is_there_twice_is_refused(path: Path) -> None:
    _append(path, lambda tar: tar.addfile(tarfile.TarInfo("index.json")))
    with pytest.raises(DamagedContent, match="there twice"):
        Layout(path)


def test_a_blob_that_an_image_needs_is_missed(tmp_path: Path) -> None:
    manifest, config = image()
    with (tmp_path / "x.tar").open("wb") as file, LayoutWriter(file) as writer:
        writer.add_blob(manifest.config.digest, len(config), [config])
        writer.add_image(NAME, manifest)
    with pytest.raises(NotInRegistry, match=digest_of(LAYER)):
        verify(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("content", "cause"),
    [(b"", "not a whole tar"), (b"PK\x03\x04" * 500, "not a whole tar")],
    ids=["empty", "zip"],
)
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes, cause: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DamagedContent, match=cause):
        Layout(tmp_path / "x")


def test_a_tar_of_something_else_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w"):
        pass
    with pytest.raises(DamagedContent, match="no image layout"):
        Layout(tmp_path / "x.tar")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DamagedContent, match="No such file"):
        Layout(tmp_path / "none.tar")


def test_a_name_that_it_does_not_hold(path: Path) -> None:
    with pytest.raises(NotInRegistry, match="holds no"):
        Layout(path).manifest("base/python", "3.14")


def _append(path: Path, add: Callable[[tarfile.TarFile], None]) -> None:
    with tarfile.open(path, "a") as tar:
        add(tar)


def test_a_document_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.tar").open("wb") as file, LayoutWriter(file) as writer:
        writer.add_file("extra/wheels/huge.whl", bytes(9_000_000))
    with pytest.raises(DamagedContent, match="too long"):
        Layout(tmp_path / "x.tar")


def test_reading_is_lazy(path: Path) -> None:
    chunks = Layout(path).open_blob("", digest_of(LAYER))
    assert isinstance(next(chunks), bytes)
    assert io.BytesIO(b"".join(chunks)).seek(0, io.SEEK_END) < len(LAYER)
