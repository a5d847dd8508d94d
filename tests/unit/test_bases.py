"""Base images: recipes, layers, sources and labels, as far as no engine is needed."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from pathlib import Path

import pytest

from labapp.bases import debian, debian_recipes
from labapp.bases import sources as base_sources
from labapp.errors import BaseError, DamagedContent
from labapp.feedback import QuietFeedback
from labapp.manifests import (
    OCI_CONFIG,
    OCI_LAYER,
    Descriptor,
    Manifest,
    Platform,
    digest_of,
    parse_config,
    parse_manifest,
)
from labapp.manifests.assembly import build_config, build_manifest
from labapp.registry.copies import add_labels
from labapp.state import State

AMD64 = Platform("linux", "amd64")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LABAPP_BASES", "LABAPP_MIRROR", "LABAPP_HUB"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", base_sources.NAMES)
def test_a_recipe_names_packages_that_could_exist(name: str) -> None:
    packages = debian_recipes.recipe(name).packages
    assert len(packages) == len(set(packages)) > 0
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", package) for package in packages)


def test_slim_is_a_part_of_full_and_has_no_compiler() -> None:
    slim = set(debian_recipes.recipe("python:3.13-slim").packages)
    full = set(debian_recipes.recipe("python:3.13").packages)
    assert slim < full
    assert {"gcc", "g++", "make", "git", "libssl-dev", "python3-dev"} <= full - slim


def test_each_settings_file_is_used() -> None:
    options = " ".join(debian_recipes.recipe("python:3.13-slim").options)
    assert "path-exclude=/usr/share/man/*" in options
    assert "EXTERNALLY-MANAGED" in options
    assert str(debian_recipes.FOLDER / "apt.conf") in options
    assert "/usr/share/man/*" not in " ".join(debian_recipes.recipe("python:3.13").options)


@pytest.mark.parametrize(
    ("name", "entrypoint", "command"),
    [("python:3.13", None, ("python3",)), ("registry", ("/usr/bin/docker-registry",), None)],
)
def test_the_config_says_what_runs_and_where_it_comes_from(
    name: str, entrypoint: tuple[str, ...] | None, command: tuple[str, ...] | None
) -> None:
    raw = debian_recipes.recipe(name).config(
        diff_id=digest_of(b""), platform=AMD64, labels={"labapp.base.source": "debian-packages"}
    )
    config = parse_config(raw)
    assert config.entrypoint == entrypoint
    assert command is None or config.cmd == command
    assert config.labels == {"labapp.base.source": "debian-packages"}
    assert config.env[0].startswith("PATH=")
    assert config.history[0].created_by.startswith("base image ")


def test_a_layer_is_the_tar_compressed_and_its_diff_id_the_digest_of_the_tar() -> None:
    tar = [bytes([number]) * 100_000 for number in range(10)]
    layer = debian.Layer(tar)
    packed = b"".join(layer)
    assert gzip.decompress(packed) == b"".join(tar)
    assert layer.diff_id == digest_of(b"".join(tar))
    assert b"".join(debian.Layer(tar)) == packed, "the same tar must give the same digest"
    assert len(packed) < 100_000


def _tar(*members: tuple[str, bytes, int]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, data, mode in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            tar.addfile(member, io.BytesIO(data))
    return target.getvalue()


def test_the_registry_root_is_tidied() -> None:
    tidy = debian_recipes.tidy_registry(
        _tar(
            ("./usr/bin/busybox", b"box", 0o755),
            ("./usr/bin/passwd", b"suid", 0o4755),
            ("./usr/bin/cat", b"a real one", 0o755),
            ("./etc/hostname", b"here", 0o644),
            ("./etc/resolv.conf", b"nameserver", 0o644),
            ("./usr/share/doc/x/README", b"long", 0o644),
            ("./usr/share/doc/x/copyright", b"licence", 0o644),
        )
    )
    with tarfile.open(fileobj=io.BytesIO(tidy)) as tar:
        members = {member.name: member for member in tar}
        kept = tar.extractfile("./usr/bin/cat")
        assert kept is not None and kept.read() == b"a real one"
    assert {"./etc/hostname", "./etc/resolv.conf", "./usr/share/doc/x/README"}.isdisjoint(members)
    assert "./usr/share/doc/x/copyright" in members
    assert members["./usr/bin/passwd"].mode == 0o755
    for program in ("sh", "rm", "find", "head"):
        assert members[f"./usr/bin/{program}"].linkname == "busybox"


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
    assert base_sources.order(source) == expected


@pytest.mark.parametrize(
    ("source", "cause"),
    [("cdrom", "auto, mirror, hub, debian"), ("mirror", "LABAPP_MIRROR"), ("", "auto, mirror")],
)
def test_a_source_that_can_not_be_meant(source: str, cause: str) -> None:
    with pytest.raises(BaseError, match=cause):
        base_sources.order(source)


@pytest.mark.parametrize(
    ("named", "address"),
    [
        ("localhost:5001", "localhost:5001"),
        ("http://10.0.0.1:5000", "10.0.0.1:5000"),
        ("https://mirror.example/", "mirror.example"),
    ],
)
def test_the_mirror_is_named_with_or_without_a_scheme(
    named: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABAPP_MIRROR", named)
    assert base_sources.mirror().address == address


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("python:3.13", ("base/python", "3.13")),
        ("python:3.13-slim", ("base/python", "3.13-slim")),
        ("registry", ("base/registry", "lab")),
    ],
)
def test_where_a_base_is_in_the_registry(name: str, expected: tuple[str, str]) -> None:
    assert base_sources.place(name) == expected


def test_a_base_says_whose_it_is_and_where_from(tmp_path: Path) -> None:
    state = State.open(tmp_path)
    labels = base_sources.labels(state, "debian-packages", title="python:3.13")
    assert labels["labapp.lab"] == state.lab_id
    assert labels["labapp.role"] == "base"
    assert labels["labapp.base.source"] == "debian-packages"


def test_the_error_lists_each_source_with_its_cause() -> None:
    error = base_sources.no_source(["python:3.13"], {"hub": "no network", "debian": "not root"})
    assert "Docker Hub: no network" in str(error)
    assert "Debian packages: not root" in str(error)
    assert "'python:3.13'" in str(error)
    assert "bundle load" in str(error)


def test_debian_packages_serve_no_other_processor() -> None:
    assert debian.why_not("linux/mips64le") is not None


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("E: Write error - write (28: No space left on device)", "the disk is full"),
        ("Err: Temporary failure resolving 'mirror.example'", "name is not known here"),
        ("Err: Could not connect to 127.0.0.1:9", "can't be reached"),
        ("The repository is not signed.", "keys of Debian"),
        ("E: something new", "mmdebstrap ended with 25"),
    ],
)
def test_a_failure_of_mmdebstrap_is_put_in_plain_words(
    line: str, cause: str, tmp_path: Path
) -> None:
    with QuietFeedback().bars("x") as bars:
        root = debian.Root(debian_recipes.recipe("registry"), folder=tmp_path, bars=bars)
        root._log.append(line)
        message = str(root._failure(25))
    assert cause in message and line in message and "'registry'" in message


def _image(config: bytes) -> Manifest:
    layer = Descriptor(OCI_LAYER, digest_of(b"layer"), 5)
    found = parse_manifest(
        build_manifest(Descriptor(OCI_CONFIG, digest_of(config), len(config)), [layer])
    )
    assert isinstance(found, Manifest)
    return found


def test_labels_are_added_and_nothing_else_changes() -> None:
    config = build_config(
        platform=AMD64, diff_ids=[digest_of(b"tar")], cmd=["python3"], labels={"a": "1", "b": "2"}
    )
    image = _image(config)
    labelled = add_labels(image, config, {"b": "3", "c": "4"})
    assert parse_config(labelled.config).labels == {"a": "1", "b": "3", "c": "4"}
    assert labelled.manifest.layers == image.layers
    assert labelled.manifest.config.digest == digest_of(labelled.config)
    assert labelled.manifest.config.size == len(labelled.config)
    before, after = json.loads(config), json.loads(labelled.config)
    assert before | {"config": None} == after | {"config": None}


@pytest.mark.parametrize("config", [b"{", b"[]", b'"x"', b'{"config": 3}'])
def test_labels_can_not_be_added_to_something_else(config: bytes) -> None:
    with pytest.raises(DamagedContent, match="reading the config"):
        add_labels(_image(config), config, {})
