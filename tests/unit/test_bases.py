"""Base images: recipes, roots in the making, and sources, as far as no engine is needed."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from labapp import feedback
from labapp.errors import BaseError
from labapp.feedback import QuietFeedback
from labapp.journey import bases, debian
from labapp.registry.manifests import Platform, digest_of, parse_config

AMD64 = Platform("linux", "amd64")
SLIM, FULL = "python:3.13-slim", "python:3.13"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LABAPP_BASES", "LABAPP_MIRROR", "LABAPP_HUB", "LABAPP_DEBIAN_MIRROR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", bases.NAMES)
def test_a_recipe_names_packages_that_could_exist(name: str) -> None:
    packages = debian.recipe(name).packages
    assert len(packages) == len(set(packages)) > 0
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", package) for package in packages)


def test_slim_is_a_part_of_full_and_has_no_compiler_and_no_manual() -> None:
    slim, full = debian.recipe(SLIM), debian.recipe(FULL)
    assert set(slim.packages) < set(full.packages)
    tools = {"gcc", "g++", "make", "git", "libssl-dev", "python3-dev"}
    assert tools <= set(full.packages) - set(slim.packages)
    assert "path-exclude=/usr/share/man/*" in " ".join(slim.options)
    assert "/usr/share/man/*" not in " ".join(full.options)


@pytest.mark.parametrize(
    ("name", "entrypoint", "command"),
    [
        (FULL, None, ("python3",)),
        ("registry", ("/usr/bin/docker-registry",), ("serve", "/etc/docker/registry/config.yml")),
    ],
)
def test_an_image_is_its_root_compressed_and_the_same_each_time(
    name: str, entrypoint: tuple[str, ...] | None, command: tuple[str, ...]
) -> None:
    tar = [bytes([number]) * 100_000 for number in range(10)]
    blobs: dict[str, bytes] = {}

    def store(chunks: Iterable[bytes]) -> tuple[str, int]:
        data = b"".join(chunks)
        blobs[digest_of(data)] = data
        return digest_of(data), len(data)

    first, again = (debian.image(debian.recipe(name), tar, store, AMD64) for _ in range(2))
    assert first.raw == again.raw
    config, (layer,) = parse_config(blobs[first.config.digest]), first.layers
    assert gzip.decompress(blobs[layer.digest]) == b"".join(tar)
    assert layer.size == len(blobs[layer.digest]) < 100_000
    assert config.diff_ids == (digest_of(b"".join(tar)),)
    assert (config.entrypoint, config.cmd, config.platform) == (entrypoint, command, AMD64)
    assert config.labels["labapp.base.source"] == "debian-packages"
    assert "labapp.lab" not in config.labels, "its digest would differ from lab to lab"
    assert config.env[0].startswith("PATH=")
    [step, *_] = json.loads(blobs[first.config.digest])["history"]
    assert step["created"], "without it, Podman's build cache never hits"


@pytest.fixture
def mmdebstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in mmdebstrap's place, to be written by a test."""
    program = tmp_path / "bin" / "mmdebstrap"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(debian, "as_root", list)  # sudo has a PATH of its own
    return program


def _made(program: Path, script: str, folder: Path) -> tuple[list[bytes], QuietFeedback]:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    with feedback.using(QuietFeedback()) as told, feedback.bars("x", unit="steps") as bars:
        root = debian.Root(debian.recipe("registry"), folder=folder / "roots", bars=bars)
        chunks = list(root)
    assert isinstance(told, QuietFeedback)
    return chunks, told


def test_mmdebstrap_is_asked_for_the_recipe_and_its_words_move_the_bar(
    mmdebstrap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABAPP_DEBIAN_MIRROR", "http://mirror.example/debian")
    script = """
        echo '4 newly installed' >&2
        for each in 1 2 3; do echo "Get:$each x" >&2; done
        echo 'I: creating tarball...' >&2
        echo "$@ $SOURCE_DATE_EPOCH"
    """
    chunks, told = _made(mmdebstrap, script, tmp_path)
    said = b"".join(chunks).decode()
    assert "--include=base-files,busybox,docker-registry trixie - http://mirror.example" in said
    assert str(debian.EPOCH) in said
    bar = told.shown[0].bars["registry"]
    assert (bar.total, bar.note) == (4, "creating tarball")


def test_a_tar_that_was_cut_off_is_no_root(mmdebstrap: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseError) as caught:
        _made(mmdebstrap, "echo half; echo 'E: all is lost' >&2; exit 25", tmp_path)
    for fact in ("'registry'", "25", "E: all is lost"):
        assert fact in str(caught.value)


def test_debian_packages_serve_no_other_processor(tmp_path: Path) -> None:
    with (
        pytest.raises(BaseError, match="registry"),
        debian.making(["registry"], Platform("linux", "mips64le"), tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("source", "environment", "expected"),
    [
        ("auto", {}, ["hub", "debian"]),
        ("auto", {"LABAPP_MIRROR": "10.0.0.1:5000"}, ["mirror", "hub", "debian"]),
        ("auto", {"LABAPP_BASES": "debian"}, ["debian"]),
        ("auto", {"LABAPP_BASES": "auto"}, ["hub", "debian"]),
        ("hub", {"LABAPP_BASES": "debian"}, ["hub"]),
        ("mirror", {"LABAPP_MIRROR": "10.0.0.1:5000"}, ["mirror"]),
    ],
)
def test_the_order_of_the_sources(
    source: str,
    environment: dict[str, str],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert bases.order(source) == expected


@pytest.mark.parametrize(
    ("source", "fact"), [("cdrom", "'cdrom'"), ("mirror", "LABAPP_MIRROR"), ("", "''")]
)
def test_a_source_that_can_not_be_meant(source: str, fact: str) -> None:
    with pytest.raises(BaseError, match=fact):
        bases.order(source)


@pytest.mark.parametrize(
    ("source", "named", "name", "reference"),
    [
        ("mirror", "localhost:5001", SLIM, "localhost:5001/base/python:3.13-slim"),
        ("mirror", "http://10.0.0.1:5000", FULL, "10.0.0.1:5000/base/python:3.13"),
        ("mirror", "https://mirror.example/", "registry", "mirror.example/base/registry:lab"),
        ("hub", "", FULL, "docker.io/library/python:3.13"),
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
