"""Manifests, indexes and configs: read from bytes, refused when damaged, written and read back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labapp.errors import DamagedContent, LabError, NotInRegistry
from labapp.manifests import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    History,
    Index,
    Manifest,
    Platform,
    digest_of,
    is_digest,
    layer_history,
    parse_config,
    parse_manifest,
)
from labapp.manifests.assembly import build_config, build_manifest

DIGEST = "sha256:" + "ab" * 32
LAYER = {"mediaType": OCI_LAYER, "digest": DIGEST, "size": 7}
CONFIG = {"mediaType": OCI_CONFIG, "digest": "sha256:" + "cd" * 32, "size": 9}
MANIFEST = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]}


def written(content: Any) -> bytes:
    return json.dumps(content).encode()


def entry(os: str, architecture: str, variant: str | None = None) -> dict[str, Any]:
    platform = {"os": os, "architecture": architecture}
    if variant:
        platform["variant"] = variant
    digest = digest_of(f"{os}/{architecture}/{variant}".encode())
    return {"mediaType": OCI_MANIFEST, "digest": digest, "size": 5, "platform": platform}


def index(*entries: dict[str, Any], media_type: str = OCI_INDEX) -> bytes:
    return written({"schemaVersion": 2, "mediaType": media_type, "manifests": entries})


def test_digest_of_known_bytes() -> None:
    # The empty input is a test vector of FIPS 180-4.
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest_of(b"") == f"sha256:{empty}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DIGEST, True),
        ("sha512:" + "a" * 128, True),
        ("sha256:" + "a" * 63, False),
        ("sha256:" + "A" * 64, False),
        ("md5:" + "a" * 32, False),
        (DIGEST + "\n", False),
        ("", False),
    ],
)
def test_is_digest(text: str, expected: bool) -> None:
    assert is_digest(text) is expected


def test_reads_an_oci_manifest() -> None:
    raw = written({**MANIFEST, "annotations": {"a": "b"}})
    manifest = parse_manifest(raw, OCI_MANIFEST)
    assert isinstance(manifest, Manifest)
    assert manifest.digest == digest_of(raw)
    assert manifest.raw == raw
    assert manifest.config.size == 9
    assert [layer.digest for layer in manifest.layers] == [DIGEST]
    assert manifest.annotations == {"a": "b"}


def test_a_layer_that_occurs_twice_is_downloaded_once() -> None:
    manifest = parse_manifest(written({**MANIFEST, "layers": [LAYER, LAYER]}))
    assert isinstance(manifest, Manifest)
    assert len(manifest.layers) == 2
    assert manifest.download_bytes == 7
    assert [blob.size for blob in manifest.blobs] == [9, 7]


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
    ("raw", "served_as", "cause"),
    [
        (b"", None, "it is not JSON"),
        (b"<html>", None, "it is not JSON"),
        (b"\xff\xfe", None, "it is not JSON"),
        (b"[" * 100_000, None, "it is not JSON"),
        (b"[]", None, "not an object"),
        (b'{"schemaVersion": 1, "fsLayers": []}', None, "the old schema 1"),
        (written({**MANIFEST, "mediaType": "text/plain"}), None, "media type 'text/plain'"),
        (written(MANIFEST), DOCKER_MANIFEST, "but says that it is"),
        (written({"schemaVersion": 2, "layers": []}), None, "'config' is missing"),
        (written({"schemaVersion": 2, "config": CONFIG}), None, "'layers' is missing"),
        (written({**MANIFEST, "layers": {}}), None, "'layers' is not a list of objects"),
        (written({**MANIFEST, "layers": [3]}), None, "'layers' is not a list of objects"),
        (
            written({**MANIFEST, "layers": [LAYER, {**LAYER, "digest": "sha256:12"}]}),
            None,
            "'layers[1].digest' is not a digest",
        ),
        (
            written({**MANIFEST, "layers": [{**LAYER, "size": -1}]}),
            None,
            "'layers[0].size' is not a number of bytes",
        ),
        (
            written({**MANIFEST, "layers": [{**LAYER, "size": True}]}),
            None,
            "'layers[0].size' is not a number of bytes",
        ),
        (
            written({**MANIFEST, "layers": [{**LAYER, "size": 1e400}]}),
            None,
            "'layers[0].size' is not a number of bytes",
        ),
        (
            written({**MANIFEST, "config": {"digest": DIGEST, "size": 1}}),
            None,
            "'config.mediaType' is missing",
        ),
        (
            index({**entry("linux", "amd64"), "platform": {"os": "linux"}}),
            None,
            "'manifests[0].platform.architecture' is missing",
        ),
    ],
)
def test_a_damaged_manifest_is_refused(raw: bytes, served_as: str | None, cause: str) -> None:
    with pytest.raises(DamagedContent) as caught:
        parse_manifest(raw, served_as)
    assert cause in str(caught.value)
    assert digest_of(raw) in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/arm64/v8", "linux/arm64/v8"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("linux/amd64/v3", "linux/amd64"),
    ],
)
def test_the_index_entry_for_a_platform(wanted: str, expected: str) -> None:
    offered = index(
        entry("linux", "arm", "v5"),
        entry("linux", "arm", "v7"),
        entry("linux", "amd64"),
        entry("linux", "arm64", "v8"),
        entry("unknown", "unknown"),
    )
    found = parse_manifest(offered)
    assert isinstance(found, Index)
    assert str(found.for_platform(Platform.parse(wanted)).platform) == expected


def test_a_platform_that_the_index_lacks() -> None:
    found = parse_manifest(index(entry("linux", "amd64"), entry("unknown", "unknown")))
    assert isinstance(found, Index)
    with pytest.raises(NotInRegistry, match=r"'linux/s390x'.* offers linux/amd64\."):
        found.for_platform(Platform.parse("linux/s390x"))


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "a/b/c/d"])
def test_a_text_that_is_no_platform(text: str) -> None:
    with pytest.raises(ValueError, match="linux/amd64"):
        Platform.parse(text)


def test_a_config_without_anything_optional() -> None:
    raw = written(
        {
            "os": "linux",
            "architecture": "amd64",
            "config": None,
            "rootfs": {"type": "layers", "diff_ids": None},
            "history": None,
        }
    )
    config = parse_config(raw)
    assert (config.env, config.entrypoint, config.cmd, config.history) == ((), None, None, ())
    assert config.created is None


def test_a_config_as_docker_writes_it() -> None:
    raw = written(
        {
            "os": "linux",
            "architecture": "arm64",
            "variant": "v8",
            "created": "2026-11-23T06:15:36.256819123Z",
            "config": {
                "Env": ["A=b"],
                "Cmd": ["serve"],
                "Entrypoint": None,
                "User": "app",
                "ExposedPorts": {"8000/tcp": {}},
                "Labels": {"x": "y"},
            },
            "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
            "history": [{"created_by": "COPY . .", "created": "2026-11-23T07:15:36+01:00"}],
        }
    )
    config = parse_config(raw)
    assert str(config.platform) == "linux/arm64/v8"
    assert config.created == datetime(2026, 11, 23, 6, 15, 36, 256819, tzinfo=UTC)
    assert config.history[0].created == datetime(2026, 11, 23, 6, 15, 36, tzinfo=UTC)
    assert config.exposed_ports == ("8000/tcp",)
    assert (config.user, config.labels, config.cmd) == ("app", {"x": "y"}, ("serve",))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"os": None}, "'os' is missing"),
        ({"architecture": 3}, "'architecture' is not a text"),
        ({"rootfs": None}, "'rootfs' is missing"),
        ({"created": "yesterday"}, "'created' is not a date and time"),
        ({"config": {"Env": "A=b"}}, "'config.Env' is not a list of texts"),
        ({"config": {"Labels": {"a": 1}}}, "'config.Labels' is not an object of texts"),
        ({"history": [{"empty_layer": "yes"}]}, "'history[0].empty_layer' is not true or false"),
    ],
)
def test_a_damaged_config_is_refused(change: dict[str, Any], cause: str) -> None:
    whole = {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": []}}
    with pytest.raises(DamagedContent) as caught:
        parse_config(written(whole | change))
    assert cause in str(caught.value)


def an_image(steps: list[History], layers: int) -> tuple[Manifest, bytes]:
    config = build_config(
        platform=Platform("linux", "amd64"), diff_ids=[DIGEST] * layers, history=steps
    )
    descriptors = [
        Descriptor(OCI_LAYER, digest_of(str(number).encode()), number) for number in range(layers)
    ]
    raw = build_manifest(Descriptor(OCI_CONFIG, digest_of(config), len(config)), descriptors)
    manifest = parse_manifest(raw)
    assert isinstance(manifest, Manifest)
    return manifest, config


def test_each_layer_has_the_step_that_made_it() -> None:
    steps = [History("ADD"), History("ENV", empty_layer=True), History("RUN")]
    manifest, config = an_image(steps, layers=2)
    pairs = layer_history(manifest, parse_config(config))
    assert [(layer.size, step and step.created_by) for layer, step in pairs] == [
        (0, "ADD"),
        (1, "RUN"),
    ]


@pytest.mark.parametrize("steps", [[], [History("ADD")], [History("A")] * 3])
def test_history_that_does_not_fit_the_layers_is_not_guessed(steps: list[History]) -> None:
    manifest, config = an_image(steps, layers=2)
    assert [step for _, step in layer_history(manifest, parse_config(config))] == [None, None]


def test_what_is_written_is_read_back() -> None:
    created = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    raw = build_config(
        platform=Platform("linux", "arm64", "v8"),
        diff_ids=[DIGEST],
        history=[History("RUN a", created, "buildkit"), History("ENV b=c", empty_layer=True)],
        created=created,
        env=["A=b"],
        entrypoint=["python3"],
        cmd=["-V"],
        user="65532",
        working_dir="/app",
        exposed_ports=["8000/tcp"],
        labels={"k": "v"},
    )
    config = parse_config(raw)
    assert config.platform == Platform("linux", "arm64", "v8")
    assert config.history == (
        History("RUN a", created, "buildkit"),
        History("ENV b=c", empty_layer=True),
    )
    assert (config.created, config.env, config.entrypoint) == (created, ("A=b",), ("python3",))
    assert (config.cmd, config.user, config.working_dir) == (("-V",), "65532", "/app")
    assert (config.exposed_ports, config.labels) == (("8000/tcp",), {"k": "v"})
    assert config.diff_ids == (DIGEST,)


def test_the_same_parts_give_the_same_bytes() -> None:
    once, again = (
        build_config(platform=Platform("linux", "amd64"), diff_ids=[], labels=labels)
        for labels in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"})
    )
    assert once == again


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
TEXT = st.sampled_from([OCI_MANIFEST, OCI_INDEX, DIGEST, "linux", "2026-01-01T00:00:00Z"]) | JSON


def mangled(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the right names, and right or wrong values."""
    parts = st.fixed_dictionaries(
        {},
        optional={
            "mediaType": TEXT,
            "digest": TEXT,
            "size": JSON,
            "os": TEXT,
            "architecture": TEXT,
            "diff_ids": st.lists(TEXT, max_size=2),
            "created": TEXT,
        },
    )
    value = parts | st.lists(parts, max_size=2) | TEXT
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, value))


@given(
    st.binary(max_size=200)
    | mangled("schemaVersion", "mediaType", "config", "layers").map(
        lambda content: json.dumps(content).encode()
    )
    | mangled("mediaType", "manifests", "annotations").map(
        lambda content: json.dumps(content).encode()
    )
)
def test_any_bytes_are_a_manifest_or_a_lab_error(raw: bytes) -> None:
    try:
        found = parse_manifest(raw)
    except LabError:
        return
    assert found.digest == digest_of(raw)


@given(
    st.binary(max_size=200)
    | mangled("os", "architecture", "created", "config", "rootfs", "history").map(
        lambda content: json.dumps(content).encode()
    )
)
def test_any_bytes_are_a_config_or_a_lab_error(raw: bytes) -> None:
    try:
        found = parse_config(raw)
    except LabError:
        return
    assert found.digest == digest_of(raw)


@given(
    st.lists(
        st.builds(
            Descriptor,
            media_type=st.text(min_size=1),
            digest=st.binary().map(digest_of),
            size=st.integers(0, 2**63 - 1),
            annotations=st.dictionaries(st.text(), st.text(), max_size=2),
        )
    )
)
def test_any_layers_survive_writing_and_reading(layers: list[Descriptor]) -> None:
    config = Descriptor(OCI_CONFIG, DIGEST, 3)
    found = parse_manifest(build_manifest(config, layers))
    assert isinstance(found, Manifest)
    assert (found.config, found.layers) == (config, tuple(layers))
