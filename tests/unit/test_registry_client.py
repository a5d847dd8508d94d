"""The registry client against servers that misbehave, on real sockets; and what it reads."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from registries import Reply, Seen, error, sent_on, serving, told, typed

from labapp.errors import (
    DamagedContent,
    InvalidReference,
    LabError,
    NotInRegistry,
    RegistryError,
    RegistryUnreachable,
)
from labapp.machine.ports import free_port
from labapp.registry import http as registry_http
from labapp.registry.client import Registry
from labapp.registry.http import origin, url_of
from labapp.registry.manifests import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    History,
    Index,
    Manifest,
    Platform,
    canonical_json,
    digest_of,
    layer_history,
    parse_config,
    parse_manifest,
)

ABSENT = "sha256:" + "f" * 64
CONTENT: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "config": {"mediaType": OCI_CONFIG, "digest": "sha256:" + "0" * 64, "size": 2},
    "layers": [{"mediaType": OCI_LAYER, "digest": "sha256:" + "1" * 64, "size": 5}],
}
CONFIG, [LAYER] = CONTENT["config"], CONTENT["layers"]
MANIFEST = canonical_json(CONTENT)
BLOB = digest_of(b"hello")


# --- nothing, or something else, at the address


@pytest.mark.parametrize(("address", "is_here"), [("localhost:{}", True), ("no.invalid:1", False)])
def test_nothing_answers(address: str, is_here: bool) -> None:
    address = address.format(free_port())
    with pytest.raises(RegistryUnreachable, match=f"'{address}'") as caught:
        Registry(address, secure=False).ping()
    assert ("python3 -m labapp start" in str(caught.value)) is is_here
    assert caught.value.__cause__ is not None


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_http, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RegistryUnreachable, match=address):
            Registry(address).ping()


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(told({})) as registry:
        Registry(registry.address).ping()
    with pytest.raises(RegistryUnreachable, match="proxy"):
        Registry("registry.invalid:5000", secure=False).ping()


Ask = Callable[[Registry], Any]


@pytest.mark.parametrize(
    "ask",
    [
        lambda registry: registry.manifest("Shop/web", "1"),
        lambda registry: registry.tags("../_catalog"),
        lambda registry: registry.resolve("shop/web", "a b"),
        lambda registry: registry.blob_size("shop/web", "sha256:12"),
        lambda registry: registry.mount_blob("shop/web", BLOB, "shop web"),
        lambda registry: registry.image("python:3.13"),
        lambda registry: registry.digest("localhost:1/shop/web:1"),
        lambda registry: registry.copy(registry, None, to="python:3.13"),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_sent(ask: Ask) -> None:
    with serving(told({})) as served:
        with pytest.raises(InvalidReference):
            ask(Registry(served.address))
        assert served.seen == []


# --- one answer


ASKED: dict[str, Ask] = {
    "ping": lambda registry: registry.ping(),
    "tags": lambda registry: registry.tags("shop/web"),
    "manifest": lambda registry: registry.manifest("shop/web", "1"),
    "image": lambda registry: registry.image(f"{registry.address}/shop/web:1"),
    "blob": lambda registry: list(registry.open_blob("shop/web", BLOB, size=5)),
    "whole blob": lambda registry: registry.read_blob("shop/web", BLOB),
    "upload": lambda registry: registry.upload_blob("shop/web", [b"x"]),
}


def other_than_image(config: str, layer: str, **more: str) -> Reply:
    parts = {"config": {**CONTENT["config"], "mediaType": config}}
    parts |= {"layers": [{**CONTENT["layers"][0], "mediaType": layer}]}
    return typed(canonical_json(CONTENT | parts | more), OCI_MANIFEST)


HUB = "You have reached your unauthenticated pull rate limit"
FULL_DISK = {"Enclosed": {"Op": "mkdir", "Err": 28}}
HTML = {"Content-Type": "text/html; charset=utf-8"}
CHART = "application/vnd.cncf.helm.config.v1+json"
SIGNATURE = "application/vnd.dev.cosign.simplesigning.v1+json"
EMPTY, SBOM = "application/vnd.oci.empty.v1+json", "application/vnd.example.sbom"
SERVED_AS = {"Docker-Content-Digest": ABSENT}

FAILURES: list[tuple[str, Reply, type[LabError], str | None]] = [
    ("ping", Reply(404), RegistryError, "AirPlay"),
    ("tags", error(400, "NAME_INVALID", "invalid name"), RegistryError, "invalid name"),
    ("tags", error(401, "UNAUTHORIZED", "who are you"), RegistryError, "docker login"),
    ("tags", error(403, "DENIED", "requested access is denied"), RegistryError, "docker login"),
    ("tags", error(403, "DENIED", "quota exceeded"), RegistryError, "quota exceeded"),
    ("tags", error(404, "NAME_UNKNOWN"), NotInRegistry, "shop/web"),
    ("tags", Reply(404, b"<h1>", HTML), RegistryError, "AirPlay"),
    ("tags", Reply(403, b"", {"Server": "AirTunes/760.20.1"}), RegistryError, "AirPlay"),
    ("tags", Reply(413, b"<h1>", HTML), RegistryError, "client_max_body_size"),
    ("tags", error(405, "UNSUPPORTED", "not supported here"), RegistryError, "not supported here"),
    ("tags", error(429, "TOOMANYREQUESTS", HUB), RegistryError, f"{HUB}.*LABAPP_MIRROR"),
    ("tags", Reply(429, headers={"Retry-After": "60"}), RegistryError, "60 s.*docker login"),
    ("tags", error(500, "UNKNOWN", "some error"), RegistryError, "some error"),
    ("tags", Reply(502, b"bad gateway"), RegistryError, "502"),
    ("tags", Reply(507), RegistryError, "disk"),
    ("tags", error(500, "X", "", "write /var: no space left on device"), RegistryError, "disk"),
    ("tags", error(500, "UNKNOWN", "", FULL_DISK), RegistryError, "disk"),
    ("tags", Reply(200, b"<html>", HTML), RegistryError, "AirPlay"),
    ("tags", told({"tags": "all"}), RegistryError, "AirPlay"),
    ("manifest", typed(MANIFEST, OCI_MANIFEST, **SERVED_AS), DamagedContent, ABSENT),
    ("manifest", typed(MANIFEST, OCI_INDEX), DamagedContent, "served as"),
    ("manifest", typed(b"{}", OCI_MANIFEST), DamagedContent, "config"),
    ("manifest", typed(b" " * (4 * 1024 * 1024 + 1), OCI_MANIFEST), RegistryError, "4,194,304"),
    ("manifest", Reply(200, MANIFEST, {}, cut_after=40), RegistryUnreachable, None),
    ("image", other_than_image(CHART, "x/chart"), RegistryError, f"'{re.escape(CHART)}'"),
    ("image", other_than_image(OCI_CONFIG, SIGNATURE), RegistryError, f"'{re.escape(SIGNATURE)}'"),
    ("image", other_than_image(EMPTY, "text/plain", artifactType=SBOM), RegistryError, f"'{SBOM}'"),
    ("blob", Reply(200, b"hallo"), DamagedContent, BLOB),
    ("blob", Reply(200, b""), DamagedContent, BLOB),
    ("blob", Reply(200, b"hello", cut_after=3), RegistryUnreachable, BLOB),
    ("blob", error(404, "BLOB_UNKNOWN"), NotInRegistry, BLOB),
    ("whole blob", sent_on("http://[::bad/d"), RegistryError, None),
    ("whole blob", sent_on("http://a:b/"), RegistryError, None),
    ("whole blob", sent_on("ftp://localhost/"), RegistryError, None),
    ("whole blob", sent_on("http://\u00ff..:5/"), RegistryError, None),
    ("whole blob", sent_on("//"), RegistryError, None),
    ("whole blob", sent_on("http://127.0.0.1:1/blob"), RegistryUnreachable, "'127.0.0.1:1'"),
    ("upload", error(404, "NOT_FOUND", "no project 'a'"), RegistryError, "no project 'a'"),
]
"""What is asked, what comes instead of an answer, the error, and what it tells."""


@pytest.mark.parametrize(("ask", "reply", "kind", "fact"), FAILURES)
def test_an_answer_that_is_none_or_can_not_be_trusted(
    ask: str, reply: Reply, kind: type[LabError], fact: str | None
) -> None:
    with serving(reply) as registry, pytest.raises(kind, match=fact) as caught:
        ASKED[ask](Registry(registry.address))
    assert type(caught.value) is kind or ask in ("tags", "whole blob")
    assert ask != "tags" or f"'{registry.address}/shop/web': " in str(caught.value)


@pytest.mark.parametrize(
    ("header", "asked"),
    [({}, ["HEAD", "GET"]), ({"Docker-Content-Digest": digest_of(MANIFEST)}, ["HEAD"])],
)
def test_a_digest_costs_one_request(header: dict[str, str], asked: list[str]) -> None:
    with serving(typed(MANIFEST, "application/json", **header)) as served:
        name = f"{served.address}/shop/web:1"
        assert Registry(served.address).digest(name) == digest_of(MANIFEST)
    assert [seen.method for seen in served.seen] == asked


# --- lists of tags


def page(tags: object, following: str) -> Reply:
    content = json.dumps({"tags": tags}).encode()
    return typed(content, "application/json", Link=f'<{following}>; rel="next"')


def test_all_pages_are_read_and_never_lead_to_another_host() -> None:
    following = "http://elsewhere.invalid/v2/shop/web/tags/list?last=b&n=2"

    def answer(seen: Seen) -> Reply:
        return told({"tags": ["c"]}) if "=b" in seen.path else page(["b", "a"], following)

    with serving(answer) as registry:
        assert Registry(registry.address).tags("shop/web") == ["a", "b", "c"]
    assert registry.seen[-1].path == "/v2/shop/web/tags/list?last=b&n=2"


@pytest.mark.parametrize(("tags", "asked"), [([], 100), (["1"] * 60_000, 2)])
def test_a_list_without_end(tags: list[str], asked: int) -> None:
    with serving(page(tags, "/v2/a/tags/list?last=1")) as served:
        with pytest.raises(RegistryError, match="no end"):
            Registry(served.address).tags("a")
        assert len(served.seen) == asked


ESCAPE = "\x1b]0;gotcha\x07\x9b31m\u202e"


@pytest.mark.parametrize(("tags", "shown"), [(None, 0), ([f"1{ESCAPE}", "\ud800"], 2)])
def test_tags_are_fit_to_print(tags: object, shown: int) -> None:
    with serving(told({"tags": tags})) as registry:
        found = Registry(registry.address).tags("shop/web")
    assert len("".join(found).encode()) >= len(found) == shown
    assert all(tag.isprintable() for tag in found)


# --- blobs


def test_a_whole_blob_by_each_algorithm() -> None:
    with serving(Reply(200, b"hello")) as registry:
        for digest in (BLOB, digest_of(b"hello", "sha384"), digest_of(b"hello", "sha512")):
            assert Registry(registry.address).read_blob("shop/web", digest) == b"hello"
        with pytest.raises(RegistryError, match="4 bytes"):
            Registry(registry.address).read_blob("shop/web", BLOB, limit=4)


def endless(size: int = 100_000, pause: float = 0.0) -> Iterator[bytes]:
    for _ in range(2000):
        yield b"x" * size
        time.sleep(pause)


def endless_after_endless(seen: Seen) -> Reply:
    there = Reply(307, b"", {"Location": "/there"}, chunks=endless())
    return there if "blobs" in seen.path else Reply(body=b"hallo")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda _: Reply(chunks=endless()), DamagedContent),
        (lambda _: Reply(chunks=endless(1, 0.02)), RegistryUnreachable),
        (lambda _: Reply(307, b"", {"Location": "/again"}, chunks=endless()), RegistryError),
        (endless_after_endless, DamagedContent),
    ],
    ids=["without end", "drips", "sent on in a circle", "a redirect without end"],
)
def test_a_blob_that_would_never_end(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[Seen], Reply], kind: type[LabError]
) -> None:
    monkeypatch.setattr(registry_http, "ANSWER_SECONDS", 0.2)
    with serving(answer) as registry:
        began, count = time.monotonic(), 0
        with pytest.raises(kind):
            for chunk in Registry(registry.address).open_blob("shop/web", BLOB, size=500_000):
                count += len(chunk)
        assert (time.monotonic() - began < 2, count <= 500_000) == (True, True)


HEADER = ESCAPE[:-1]  # of the characters that a header can hold
INDEX = {"mediaType": OCI_MANIFEST, "digest": ABSENT, "size": 1}
INDEX |= {"platform": {"os": ESCAPE, "architecture": "amd64"}}
ARTIFACT = CONTENT | {"artifactType": ESCAPE, "config": CONTENT["config"] | {"mediaType": CHART}}


@pytest.mark.parametrize(
    "reply",
    [
        error(400, "X", f"no {ESCAPE}"),
        typed(MANIFEST, f"application/vnd.{HEADER}"),
        typed(canonical_json({"mediaType": ESCAPE}), ""),
        typed(canonical_json({"manifests": [INDEX] * 9_000}), OCI_INDEX),
        typed(canonical_json(ARTIFACT), OCI_MANIFEST),
        typed(MANIFEST, OCI_MANIFEST, **{"Docker-Content-Digest": HEADER}),
        Reply(307, b"", {"Location": f"http://[{HEADER}/"}),
        Reply(307, b"", {"Location": "http://a\x1b\x07\x9b/"}),
        Reply(401, b"", {"WWW-Authenticate": f'Bearer realm="http://a{HEADER}/"'}),
    ],
)
def test_no_word_of_a_registry_reaches_the_terminal_raw(reply: Reply) -> None:
    with serving(reply) as served, pytest.raises(RegistryError) as caught:
        registry = Registry(served.address, credentials=lambda _: None)
        registry.image(f"{served.address}/shop/web:1")
    assert not set(str(caught.value)) & set("\x1b\x07\x9b\u202e")
    assert len(str(caught.value)) < 10_000


def test_an_upload_over_a_slow_line_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_http, "CONNECT_SECONDS", 0.5)
    blob = bytes(8_000_000)
    with serving(Reply(202, b"", {"Location": "/v2/a/b/blobs/uploads/1"}), pause=0.15) as served:
        began = time.monotonic()
        assert Registry(served.address).upload_blob("a/b", [blob]) == (digest_of(blob), len(blob))
    assert time.monotonic() - began > 2 * registry_http.CONNECT_SECONDS
    assert served.seen[1].body == blob


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("https://r.test/v2/", "https://r.test", True),
        ("https://r.test:443/v2/", "https://r.test", True),
        ("http://r.test/v2/", "https://r.test", False),
        ("https://r.test:444", "https://r.test", False),
        ("https://s.r.test", "https://r.test", False),
        ("https://r.test.evil.test", "https://r.test", False),
        ("https://r.test@evil.test", "https://r.test", False),
        ("http://localhost:5/v2/", "http://127.0.0.1:5", True),
        (url_of("[::1]:5"), url_of("localhost:5"), True),
        (url_of("localhost:5"), url_of("localhost:6"), False),
        (url_of("mirror:5"), url_of("localhost:5"), False),
    ],
)
def test_whose_secrets_fit_the_other(one: str, other: str, expected: bool) -> None:
    assert (origin(one) == origin(other)) is expected


# --- manifests, indexes and configs

IMAGE = {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": []}}


@pytest.mark.parametrize(
    ("parse", "content", "fact"),
    [
        (parse_manifest, b"", "JSON"),
        (parse_manifest, b"[" * 100_000, "JSON"),
        (parse_manifest, b'{"size": ' + b"1" * 5000 + b"}", "JSON"),
        (parse_manifest, {"schemaVersion": 1, "fsLayers": []}, "config"),
        (parse_manifest, CONTENT | {"mediaType": "text/plain"}, "text/plain"),
        (parse_manifest, {"schemaVersion": 2, "config": CONFIG}, "layers"),
        (parse_manifest, CONTENT | {"layers": [3]}, "layers[0]"),
        (parse_manifest, CONTENT | {"layers": [LAYER | {"digest": "sha256:12"}]}, "sha256:12"),
        (parse_manifest, CONTENT | {"layers": [LAYER | {"size": True}]}, "layers[0].size"),
        (parse_manifest, CONTENT | {"layers": [LAYER | {"size": -1}]}, "-1"),
        (parse_manifest, CONTENT | {"config": {"digest": ABSENT, "size": 1}}, "mediaType"),
        (parse_config, IMAGE | {"os": None}, "'os'"),
        (parse_config, IMAGE | {"rootfs": None}, "'rootfs'"),
        (parse_config, IMAGE | {"config": {"Env": "A=b"}}, "'config.Env'"),
        (parse_config, IMAGE | {"config": {"Labels": {"a": 1}}}, "'config.Labels.a'"),
    ],
)
def test_what_is_damaged_is_named(
    parse: Callable[[bytes], object], content: Any, fact: str
) -> None:
    raw = content if isinstance(content, bytes) else canonical_json(content)
    with pytest.raises(DamagedContent, match=digest_of(raw)) as caught:
        parse(raw)
    assert fact in str(caught.value)


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
    offered = "unknown/unknown linux linux/arm/v5 linux/arm/v7 linux/amd64 linux/arm64"
    entries = []
    for name in (*offered.split(), "linux/arm64/v8"):
        platform = dict(zip(("os", "architecture", "variant"), name.split("/"), strict=False))
        entries.append(CONFIG | {"digest": digest_of(name.encode()), "platform": platform})
    found = parse_manifest(canonical_json({"schemaVersion": 2, "manifests": entries}))
    assert isinstance(found, Index)
    assert str(found.for_platform(Platform.parse(wanted)).platform) == expected


def test_a_config_without_anything_optional_and_as_docker_writes_it() -> None:
    nothing = {"config": None, "rootfs": {"diff_ids": None}, "history": None}
    config = parse_config(canonical_json(IMAGE | nothing))
    assert (config.env, config.entrypoint, config.cmd, config.history) == ((), None, None, ())
    steps = [
        {"created_by": "COPY . .", "created": "2026-11-23T07:15:36+01:00"},
        {"created_by": "ENV a=b", "empty_layer": True},
    ]
    run = {"Env": ["A=b"], "Cmd": ["serve"], "Entrypoint": None, "Labels": {"x": "two\nlines"}}
    content = {"os": "linux", "architecture": "arm64", "variant": "v8", "history": steps}
    config = parse_config(canonical_json(content | {"config": run, "rootfs": {"diff_ids": [BLOB]}}))
    assert str(config.platform) == "linux/arm64/v8"
    assert (config.env, config.entrypoint, config.cmd) == (("A=b",), None, ("serve",))
    assert (config.labels, config.diff_ids) == ({"x": "two\nlines"}, (BLOB,))
    assert config.history == (History("COPY . ."), History("ENV a=b", empty_layer=True))


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
    manifest = parse_manifest(canonical_json(CONTENT | {"layers": [LAYER, LAYER | {"size": 8}]}))
    assert isinstance(manifest, Manifest)
    pairs = layer_history(manifest, parse_config(canonical_json(IMAGE | {"history": history})))
    assert [layer.size for layer, _ in pairs] == [5, 8]
    assert [step and step.created_by for _, step in pairs] == steps
