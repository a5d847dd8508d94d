"""Base images: recipes, roots, sources and bundles, as far as no engine is needed."""

from __future__ import annotations

import functools
import gzip
import json
import random
import zipfile
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from made_images import Memory

from labapp import bundle, feedback
from labapp.bundle import Bundle
from labapp.errors import BaseError, DamagedContent, LabError
from labapp.feedback import QuietFeedback
from labapp.journey import bases, debian
from labapp.reference import Reference
from labapp.registry.manifests import Manifest, Platform, digest_of, parse_config
from labapp.state import State

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64", "v8")
SLIM, FULL = "python:3.13-slim", "python:3.13"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LABAPP_BASES", "LABAPP_MIRROR", "LABAPP_HUB", "LABAPP_DEBIAN_MIRROR"):
        monkeypatch.delenv(name, raising=False)


def stored(memory: Memory, name: str, tar: list[bytes], platform: Platform = AMD64) -> Manifest:
    store = functools.partial(memory.upload_blob, "")
    return debian.image(debian.recipe(name), tar, store, platform)


def test_an_image_is_its_root_compressed_and_the_same_each_time() -> None:
    tar = [bytes([number]) * 100_000 for number in range(10)]
    first, again = (stored(memory := Memory(), FULL, tar) for _ in range(2))
    assert first.raw == again.raw
    blobs, (layer,) = memory.held, first.layers
    config = parse_config(blobs[first.config.digest])
    assert gzip.decompress(blobs[layer.digest]) == b"".join(tar)
    assert layer.size == len(blobs[layer.digest]) < 100_000
    assert config.diff_ids == (digest_of(b"".join(tar)),)
    assert (config.entrypoint, config.cmd, config.platform) == (None, ("python3",), AMD64)
    # Of no lab: its digest would differ from lab to lab.
    assert config.labels == {"labapp.base.source": "debian-packages"}
    assert config.env[0].startswith("PATH=")
    [step, *_] = json.loads(blobs[first.config.digest])["history"]
    assert step["created"], "without it, Podman's build cache never hits"


def test_a_tar_that_was_cut_off_is_no_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mmdebstrap"
    program.write_text("#!/bin/sh\necho half; echo 'E: all is lost' >&2; exit 25\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(debian, "as_root", list)  # sudo has a PATH of its own
    with feedback.using(QuietFeedback()), feedback.bars("x", unit="steps") as bars:
        root = debian.Root(debian.recipe("registry"), folder=tmp_path / "roots", bars=bars)
        with pytest.raises(BaseError) as caught:
            b"".join(root)
    for fact in ("'registry'", "25", "E: all is lost"):
        assert fact in str(caught.value)


def test_debian_packages_serve_no_other_processor(tmp_path: Path) -> None:
    with (
        pytest.raises(BaseError, match="registry"),
        debian.making(["registry"], Platform("linux", "mips64le"), tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("source", "named", "mirror", "expected"),
    [
        ("auto", "", "", ["hub", "debian"]),
        ("auto", "auto", "10.0.0.1:5000", ["mirror", "hub", "debian"]),
        ("auto", "debian", "", ["debian"]),
        ("hub", "debian", "", ["hub"]),
        ("mirror", "", "", "LABAPP_MIRROR"),
        ("cdrom", "", "", "'cdrom'"),
    ],
)
def test_the_order_of_the_sources(
    source: str, named: str, mirror: str, expected: list[str] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABAPP_BASES", named)
    monkeypatch.setenv("LABAPP_MIRROR", mirror)
    if isinstance(expected, str):
        with pytest.raises(BaseError, match=expected):
            bases.order(source)
    else:
        assert bases.order(source) == expected


@pytest.mark.parametrize(
    ("source", "named", "name", "reference"),
    [
        ("mirror", "localhost:5001", SLIM, "localhost:5001/base/python:3.13-slim"),
        ("mirror", "http://10.0.0.1:5000", FULL, "10.0.0.1:5000/base/python:3.13"),
        ("mirror", "https://mirror.example/", "registry", "mirror.example/base/registry:lab"),
        ("hub", "", "registry", "docker.io/library/registry:3"),
        ("hub", "hub.example/proxy/library/", SLIM, "hub.example/proxy/library/python:3.13-slim"),
    ],
)
def test_where_a_registry_has_the_images(
    source: str, named: str, name: str, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"LABAPP_{source.upper()}", named)
    registry, found = bases.place_of(source, name)
    assert found == found.parse(reference)
    assert registry.address == found.registry


# Bundles

LAYER = random.Random(1).randbytes(3_000_000)
"""Three megabytes of it: more than one chunk."""

MEMORY = Memory()
NAME = Reference(MEMORY.address, "base/python", "3.13")
FILES = {"a-1.0.whl": b"wheel", "b-1.0.whl": b""}
MADE = stored(MEMORY, FULL, [LAYER])
MEMORY.put_manifest(NAME.repository, NAME.identifier, MADE.raw, MADE.media_type)
FAR = stored(MEMORY, FULL, [b"arm64"], ARM64)
MEMORY.put_manifest(NAME.repository, "far", FAR.raw, FAR.media_type)
BOTH = NAME.with_tag("both")
PACKED = MEMORY.held[MADE.layers[0].digest]


def write(path: Path) -> Path:
    near, far = ((MEMORY, MEMORY.image(each)) for each in (NAME, NAME.with_tag("far")))
    bundle.write(path, {str(NAME): [near], str(BOTH): [near, far]}, FILES)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "lab.zip")


def test_what_was_written_is_read_back_byte_for_byte(path: Path, tmp_path: Path) -> None:
    found = Bundle(path)
    found.verify()
    assert found.image(NAME).manifest.raw == MADE.raw
    assert digest_of(found.image(NAME).config.raw) == MADE.config.digest
    for platform, made in {AMD64: MADE, Platform.parse("linux/arm64"): FAR}.items():
        image = found.image(BOTH, platform=platform)
        assert (image.manifest, image.config.platform.architecture) == (made, platform.architecture)
    assert found.image(BOTH).config.platform == AMD64, "as it was written first"
    for blob in (*MADE.blobs, *FAR.blobs):
        assert b"".join(found.open_blob("", blob.digest)) == MEMORY.held[blob.digest]
    assert found.files() == FILES
    assert path.stat().st_size < len(PACKED) + 20_000, "each blob is in it once"
    assert write(tmp_path / "again.zip").read_bytes() == path.read_bytes()
    with pytest.raises(DamagedContent, match=r"base/python:3\.14"):
        found.image(NAME.with_tag("3.14"))


def test_writing_replaces_a_file_only_when_it_is_complete(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BaseError, match="none"):
        write(path.parent / "none" / "lab.zip")
    before = path.read_bytes()

    def full_disk(_: str, digest: str, **__: object) -> Generator[bytes]:
        yield MEMORY.held[digest]
        if MEMORY.held[digest] == PACKED:
            raise OSError(28, "No space left")

    monkeypatch.setattr(MEMORY, "open_blob", full_disk)
    with pytest.raises(BaseError, match=str(path)):
        write(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def _alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(PACKED[:4096]) + 5_000] ^= 1
    path.write_bytes(data)


def _rewritten(change: Callable[[str, bytes], bytes | None]) -> Callable[[Path], object]:
    def spoil(path: Path) -> None:
        with zipfile.ZipFile(path) as old:
            members = {name: change(name, old.read(name)) for name in old.namelist()}
        with zipfile.ZipFile(path, "w") as new:
            for name, data in members.items():
                if data is not None:
                    new.writestr(name, data)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "fact"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1_000_000]), "lab.zip"),
        (_alter, digest_of(PACKED)),
        (_rewritten(lambda name, data: data.replace(PACKED, PACKED[::-1])), digest_of(PACKED)),
        (_rewritten(lambda name, data: None if data == PACKED else data), digest_of(PACKED)),
        (_rewritten(lambda name, data: None if data == FAR.raw else data), FAR.digest),
        (lambda path: path.unlink(), "lab.zip"),
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
    with feedback.using(QuietFeedback()), pytest.raises(LabError, match=fact):
        bundle.load(state, path, wheel_folder=tmp_path / "wheels")
    assert list(state.folder.iterdir()) == before
    assert not (tmp_path / "wheels").exists()
