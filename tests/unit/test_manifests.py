"""Manifests, indexes and configs: read from bytes, and refused when damaged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from labapp.errors import DamagedContent, NotInRegistry
from labapp.registry.manifests import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    History,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    digest_of,
    layer_history,
    parse_config,
    parse_manifest,
)

DIGEST = "sha256:" + "ab" * 32
LAYER = {"mediaType": OCI_LAYER, "digest": DIGEST, "size": 7}
CONFIG = {"mediaType": OCI_CONFIG, "digest": "sha256:" + "cd" * 32, "size": 9}
MANIFEST = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]}
IMAGE = {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": []}}


def written(content: Any) -> bytes:
    return json.dumps(content).encode()


def an_index(*platforms: str) -> Index:
    entries = []
    for name in platforms:
        platform = dict(zip(("os", "architecture", "variant"), name.split("/"), strict=False))
        digest = digest_of(name.encode())
        entries.append(CONFIG | {"digest": digest, "platform": platform})
    found = parse_manifest(written({"schemaVersion": 2, "manifests": entries}))
    assert isinstance(found, Index)
    return found


def test_a_manifest_is_read_and_a_layer_that_occurs_twice_is_downloaded_once() -> None:
    raw = written(MANIFEST | {"layers": [LAYER, LAYER]})
    manifest = parse_manifest(raw, OCI_MANIFEST)
    assert isinstance(manifest, Manifest)
    assert (manifest.digest, manifest.raw) == (digest_of(raw), raw)
    assert [(layer.digest, layer.size) for layer in manifest.layers] == [(DIGEST, 7)] * 2
    assert [(blob.digest, blob.size) for blob in manifest.blobs] == [
        (CONFIG["digest"], 9),
        (DIGEST, 7),
    ]
    assert (manifest.download_bytes, manifest.other_than_image) == (7, "")


@pytest.mark.parametrize(
    ("content", "served_as", "kind", "media_type"),
    [
        ({**MANIFEST, "mediaType": DOCKER_MANIFEST}, DOCKER_MANIFEST, Manifest, DOCKER_MANIFEST),
        ({**MANIFEST, "mediaType": None}, OCI_MANIFEST, Manifest, OCI_MANIFEST),
        ({**MANIFEST, "mediaType": None}, None, Manifest, OCI_MANIFEST),
        ({"schemaVersion": 2, "manifests": []}, None, Index, OCI_INDEX),
        ({"schemaVersion": 2, "manifests": []}, DOCKER_INDEX, Index, DOCKER_INDEX),
    ],
)
def test_what_a_document_is(
    content: Any, served_as: str | None, kind: type, media_type: str
) -> None:
    found = parse_manifest(written(content), served_as)
    assert isinstance(found, kind)
    assert found.media_type == media_type


@pytest.mark.parametrize(
    ("raw", "served_as", "fact"),
    [
        (b"", None, "JSON"),
        (b"\xff\xfe", None, "JSON"),
        (b"[" * 100_000, None, "JSON"),
        (b'{"size": ' + b"1" * 5000 + b"}", None, "JSON"),
        (b"[]", None, ""),
        (b'{"schemaVersion": 1, "fsLayers": []}', None, "config"),
        (written({**MANIFEST, "mediaType": "text/plain"}), None, "text/plain"),
        (written(MANIFEST), DOCKER_MANIFEST, DOCKER_MANIFEST),
        (written({"schemaVersion": 2, "layers": []}), None, "config"),
        (written({"schemaVersion": 2, "config": CONFIG}), None, "layers"),
        (written({**MANIFEST, "layers": {}}), None, "layers"),
        (written({**MANIFEST, "layers": [3]}), None, "layers[0]"),
        (written({**MANIFEST, "layers": [LAYER | {"digest": "sha256:12"}]}), None, "sha256:12"),
        (written({**MANIFEST, "layers": [LAYER, LAYER | {"size": -1}]}), None, "-1"),
        (written({**MANIFEST, "layers": [LAYER, LAYER | {"size": True}]}), None, "layers[1].size"),
        (written({**MANIFEST, "layers": [LAYER | {"size": 1e400}]}), None, "layers[0].size"),
        (written({**MANIFEST, "config": {"digest": DIGEST, "size": 1}}), None, "mediaType"),
    ],
)
def test_a_damaged_manifest_is_refused(raw: bytes, served_as: str | None, fact: str) -> None:
    with pytest.raises(DamagedContent) as caught:
        parse_manifest(raw, served_as)
    assert fact in str(caught.value)
    assert digest_of(raw) in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v5"),
        ("linux/arm64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64/v8"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("linux/amd64/v3", "linux/amd64"),
        ("linux/arm64/v9", "linux/arm64"),
    ],
)
def test_the_index_entry_for_a_platform(wanted: str, expected: str) -> None:
    """An attestation, and an entry with half a platform, are in nobody's way."""
    offered = ("unknown/unknown", "linux", "linux/arm/v5", "linux/arm/v7", "linux/amd64")
    found = an_index(*offered, "linux/arm64", "linux/arm64/v8")
    assert str(found.for_platform(Platform.parse(wanted)).platform) == expected


def test_a_platform_that_the_index_lacks() -> None:
    with pytest.raises(NotInRegistry, match=r"'linux/s390x'.* linux/amd64\."):
        an_index("linux/amd64", "unknown/unknown").for_platform(Platform.parse("linux/s390x"))


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "a/b/c/d"])
def test_a_text_that_is_no_platform(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}'"):
        Platform.parse(text)


def test_a_config_without_anything_optional_and_as_docker_writes_it() -> None:
    nothing = {"config": None, "rootfs": {"diff_ids": None}, "history": None}
    config = parse_config(written(IMAGE | nothing))
    assert (config.env, config.entrypoint, config.cmd, config.history) == ((), None, None, ())
    steps = [
        {"created_by": "COPY . .", "created": "2026-11-23T07:15:36+01:00"},
        {"created_by": "ENV a=b", "empty_layer": True},
    ]
    run = {"Env": ["A=b"], "Cmd": ["serve"], "Entrypoint": None, "User": "app"}
    content = {"os": "linux", "architecture": "arm64", "variant": "v8", "history": steps}
    content |= {"config": run | {"Labels": {"x": "two\nlines"}}, "rootfs": {"diff_ids": [DIGEST]}}
    raw = written(content)
    assert parse_config(raw) == ImageConfig(
        platform=Platform("linux", "arm64", "v8"),
        env=("A=b",),
        entrypoint=None,
        cmd=("serve",),
        user="app",
        labels={"x": "two\nlines"},
        diff_ids=(DIGEST,),
        history=(History("COPY . ."), History("ENV a=b", empty_layer=True)),
        raw=raw,
    )


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"os": None}, "'os'"),
        ({"architecture": 3}, "'architecture'"),
        ({"rootfs": None}, "'rootfs'"),
        ({"config": {"Env": "A=b"}}, "'config.Env'"),
        ({"config": {"Labels": {"a": 1}}}, "'config.Labels.a'"),
        ({"history": [{"empty_layer": "yes"}]}, "'history[0].empty_layer'"),
    ],
)
def test_a_damaged_config_is_refused(change: dict[str, Any], fact: str) -> None:
    with pytest.raises(DamagedContent) as caught:
        parse_config(written(IMAGE | change))
    assert fact in str(caught.value)


@pytest.mark.parametrize("odd", ["\x1b[2J", "\ud800", "\x9b", "\u202e", "\r", "\x00"])
def test_texts_can_be_printed_and_written(odd: str) -> None:
    change = {"config": {"Env": [odd], "Labels": {odd: odd}, "User": odd}, "os": odd}
    config = parse_config(written(IMAGE | change))
    for text in (*config.env, *config.labels, *config.labels.values(), config.user, str(config)):
        assert odd not in text
        text.encode()


@pytest.mark.parametrize(
    ("history", "steps"),
    [
        ([{"created_by": "A"}, {"empty_layer": True}, {"created_by": "B"}], ["A", "B"]),
        ([], [None, None]),
        ([{"created_by": "A"}], [None, None]),
        ([{"created_by": "A"}] * 3, [None, None]),
    ],
)
def test_each_layer_has_the_step_that_made_it_if_that_is_sure(
    history: list[dict[str, Any]], steps: list[str | None]
) -> None:
    manifest = parse_manifest(written(MANIFEST | {"layers": [LAYER, LAYER | {"size": 8}]}))
    assert isinstance(manifest, Manifest)
    pairs = layer_history(manifest, parse_config(written(IMAGE | {"history": history})))
    assert [layer.size for layer, _ in pairs] == [7, 8]
    assert [step and step.created_by for _, step in pairs] == steps
