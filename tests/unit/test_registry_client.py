"""The registry client against servers that misbehave, on real sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from registries import Reply, Seen, error, serving, told, typed

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
from labapp.registry.client import BlobDamage, Registry
from labapp.registry.http import origin, url_of
from labapp.registry.manifests import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Manifest,
    canonical_json,
    digest_of,
    parse_manifest,
)

ABSENT = "sha256:" + "f" * 64
CONTENT: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "config": {"mediaType": OCI_CONFIG, "digest": "sha256:" + "0" * 64, "size": 2},
    "layers": [{"mediaType": OCI_LAYER, "digest": "sha256:" + "1" * 64, "size": 5}],
}
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


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(told({})) as registry:
        Registry(registry.address).ping()
    with pytest.raises(RegistryUnreachable, match="proxy"):
        Registry("registry.invalid:5000", secure=False).ping()


def test_who_knows_nothing_of_the_first_question_is_no_registry() -> None:
    with serving(Reply(404)) as other, pytest.raises(RegistryError, match="AirPlay"):
        Registry(other.address).ping()


HUB = "You have reached your unauthenticated pull rate limit"
FULL_DISK = {"Enclosed": {"Op": "mkdir", "Err": 28}}


@pytest.mark.parametrize(
    ("reply", "kind", "fact"),
    [
        (error(400, "NAME_INVALID", "invalid repository name"), RegistryError, "repository name"),
        (error(401, "UNAUTHORIZED", "who are you"), RegistryError, "docker login"),
        (error(403, "DENIED", "requested access is denied"), RegistryError, "docker login"),
        (error(404, "NAME_UNKNOWN"), NotInRegistry, "shop/web"),
        (Reply(404, b"<h1>", {"Content-Type": "text/html"}), RegistryError, "AirPlay"),
        (Reply(403, b"", {"Server": "AirTunes/760.20.1"}), RegistryError, "AirPlay"),
        (error(403, "DENIED", "quota exceeded"), RegistryError, "quota exceeded"),
        (Reply(413, b"<h1>", {"Content-Type": "text/html"}), RegistryError, "client_max_body_size"),
        (error(405, "UNSUPPORTED", "The operation is unsupported."), RegistryError, "unsupported"),
        (error(429, "TOOMANYREQUESTS", HUB), RegistryError, f"{HUB}.*LABAPP_MIRROR"),
        (Reply(429, headers={"Retry-After": "60"}), RegistryError, "60 s.*docker login"),
        (error(500, "UNKNOWN", "unknown error"), RegistryError, "unknown error"),
        (Reply(502, b"bad gateway"), RegistryError, "502"),
        (Reply(507), RegistryError, "disk"),
        (error(500, "UNKNOWN", "", "write /var: no space left on device"), RegistryError, "disk"),
        (error(500, "UNKNOWN", "", FULL_DISK), RegistryError, "disk"),
        (typed(b"<html>", "text/html; charset=utf-8"), RegistryError, "AirPlay"),
        (told({"tags": "all"}), RegistryError, "AirPlay"),
    ],
)
def test_refusals(reply: Reply, kind: type[LabError], fact: str) -> None:
    with serving(reply) as registry, pytest.raises(kind, match=fact) as caught:
        Registry(registry.address).tags("shop/web")
    assert f"'{registry.address}/shop/web': " in str(caught.value)


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
        lambda registry: registry.copy(registry, None, to="python:3.13"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_name_is_told_before_anything_is_sent(ask: Callable[[Registry], Any]) -> None:
    with serving(told({})) as served:
        with pytest.raises(InvalidReference):
            ask(Registry(served.address))
        assert served.seen == []


# --- manifests


@pytest.mark.parametrize(
    ("header", "asked"),
    [({}, ["HEAD", "GET"]), ({"Docker-Content-Digest": digest_of(MANIFEST)}, ["HEAD"])],
)
def test_a_digest_costs_one_request(header: dict[str, str], asked: list[str]) -> None:
    with serving(typed(MANIFEST, "application/json", **header)) as served:
        name = f"{served.address}/shop/web:1"
        assert Registry(served.address).digest(name) == digest_of(MANIFEST)
    assert [seen.method for seen in served.seen] == asked


@pytest.mark.parametrize(
    ("reply", "identifier", "kind"),
    [
        (typed(MANIFEST, OCI_MANIFEST), ABSENT, DamagedContent),
        (typed(MANIFEST, OCI_MANIFEST, **{"Docker-Content-Digest": ABSENT}), "1", DamagedContent),
        (typed(MANIFEST, OCI_INDEX), "1", DamagedContent),
        (typed(b"{}", OCI_MANIFEST), "1", DamagedContent),
        (typed(b" " * (4 * 1024 * 1024 + 1), OCI_MANIFEST), "1", RegistryError),
        (Reply(200, MANIFEST, {}, cut_after=40), "1", RegistryUnreachable),
    ],
)
def test_a_manifest_that_can_not_be_trusted(
    reply: Reply, identifier: str, kind: type[LabError]
) -> None:
    with serving(reply) as registry, pytest.raises(kind) as caught:
        Registry(registry.address).manifest("shop/web", identifier)
    assert type(caught.value) is kind


CHART = "application/vnd.cncf.helm.config.v1+json"
SIGNATURE = "application/vnd.dev.cosign.simplesigning.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"


@pytest.mark.parametrize(
    ("config", "layer", "artifact_type", "named"),
    [
        (CHART, "application/vnd.cncf.helm.chart.content.v1.tar+gzip", None, CHART),
        (OCI_CONFIG, SIGNATURE, None, SIGNATURE),
        (EMPTY, "text/plain", "application/vnd.example.sbom", "application/vnd.example.sbom"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(
    config: str, layer: str, artifact_type: str | None, named: str
) -> None:
    content = json.loads(MANIFEST) | {"artifactType": artifact_type}
    content["config"]["mediaType"], content["layers"][0]["mediaType"] = config, layer
    reply = typed(canonical_json(content), OCI_MANIFEST)
    with serving(reply) as registry, pytest.raises(RegistryError) as caught:
        Registry(registry.address).image(f"{registry.address}/shop/web:1")
    assert f"'{named}'" in str(caught.value)
    assert type(caught.value) is RegistryError


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


def test_a_tag_that_is_missing_tells_those_there_are() -> None:
    def answer(seen: Seen) -> Reply:
        return told({"tags": ["1.1", "1.0"]}) if "/tags/" in seen.path else error(404, "UNKNOWN")

    with serving(answer) as served:
        registry = Registry(served.address)
        with pytest.raises(NotInRegistry, match=r"'2\.0', .* 1\.0, 1\.1\."):
            registry.digest(f"{served.address}/a:2.0")
        with pytest.raises(NotInRegistry, match=ABSENT):
            registry.manifest("a", ABSENT)


ESCAPE = "\x1b]0;gotcha\x07\x9b31m\u202e"


@pytest.mark.parametrize(("tags", "shown"), [(None, 0), ([f"1{ESCAPE}", "\ud800"], 2)])
def test_tags_are_fit_to_print(tags: object, shown: int) -> None:
    with serving(told({"tags": tags})) as registry:
        found = Registry(registry.address).tags("shop/web")
    assert len("".join(found).encode()) >= len(found) == shown
    assert all(tag.isprintable() for tag in found)


# --- blobs


@pytest.mark.parametrize(
    ("reply", "size", "kind"),
    [
        (Reply(200, b"hallo"), 5, DamagedContent),
        (Reply(200, b""), None, DamagedContent),
        (Reply(200, b"hello", cut_after=3), 5, RegistryUnreachable),
        (error(404, "BLOB_UNKNOWN"), 5, NotInRegistry),
    ],
)
def test_a_blob_that_can_not_be_trusted(
    reply: Reply, size: int | None, kind: type[LabError]
) -> None:
    with serving(reply) as registry, pytest.raises(kind, match=BLOB) as caught:
        list(Registry(registry.address).open_blob("shop/web", BLOB, size=size))
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (error(404, "BLOB_UNKNOWN"), "missing"),
        (Reply(200, b"hell"), "of 4 bytes, not 5"),
        (Reply(200, b"hallo"), "altered"),
    ],
)
def test_a_blob_that_is_not_what_its_manifest_says(reply: Reply, what: str) -> None:
    blob = {"mediaType": OCI_LAYER, "digest": BLOB, "size": 5}
    manifest = parse_manifest(canonical_json(CONTENT | {"config": blob, "layers": [blob]}))
    assert isinstance(manifest, Manifest)
    with serving(reply) as served:
        found = Registry(served.address).damaged_blobs("shop/web", manifest, contents=True)
    assert found == [BlobDamage(BLOB, what)]


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


def sent_on(seen: Seen) -> Reply:
    there = Reply(307, b"", {"Location": "/there"}, chunks=endless())
    return there if "blobs" in seen.path else Reply(body=b"hallo")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda _: Reply(chunks=endless()), DamagedContent),
        (lambda _: Reply(chunks=endless(1, 0.02)), RegistryUnreachable),
        (lambda _: Reply(307, b"", {"Location": "/again"}, chunks=endless()), RegistryError),
        (sent_on, DamagedContent),
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


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_http, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RegistryUnreachable, match=address):
            Registry(address).ping()


@pytest.mark.parametrize(
    "place",
    ["http://[::bad/d", "http://a:b/", "ftp://localhost/", "http://\u00ff..:5/", "//", "http://"],
)
def test_a_redirect_to_what_is_no_address(place: str) -> None:
    with serving(Reply(307, b"", {"Location": place})) as registry, pytest.raises(RegistryError):
        Registry(registry.address).read_blob("shop/web", BLOB)


def test_a_redirect_to_a_dead_host_names_that_host() -> None:
    elsewhere = f"127.0.0.1:{free_port()}"
    reply = Reply(307, b"", {"Location": f"http://{elsewhere}/blob"})
    with serving(reply) as registry, pytest.raises(RegistryUnreachable, match=f"'{elsewhere}'"):
        Registry(registry.address).read_blob("shop/web", BLOB)


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


@pytest.mark.parametrize(
    "reply",
    [
        Reply(204, b"", {"Content-Length": "\u00b2"}),
        Reply(418, b"[]", {"Content-Length": "x"}),
        Reply(206, b"\xff", {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": "md5:x"}),
        Reply(200, b'{"tags": [1]}', {"Content-Type": ";"}),
        Reply(500, b'{"errors": [3]}'),
        Reply(202, b"", {"Location": "http://["}),
        Reply(202, b"{}", {"Location": "/%zz?a"}),
        Reply(302, b"", {"Location": ""}),
    ],
)
def test_any_answer_gives_a_result_or_a_lab_error(reply: Reply) -> None:
    with serving(replace(reply, cut_after=len(reply.body))) as served:
        registry = Registry(served.address)
        for ask in (
            registry.ping,
            registry.repositories,
            lambda: registry.resolve("a/b", "1"),
            lambda: registry.blob_size("a/b", ABSENT),
            lambda: registry.read_blob("a/b", ABSENT),
            lambda: registry.upload_blob("a/b", [b"x"]),
        ):
            with contextlib.suppress(LabError):
                ask()


def test_an_upload_over_a_slow_line_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_http, "CONNECT_SECONDS", 0.5)
    blob = bytes(8_000_000)
    with serving(Reply(202, b"", {"Location": "/v2/a/b/blobs/uploads/1"}), pause=0.15) as served:
        began = time.monotonic()
        assert Registry(served.address).upload_blob("a/b", [blob]) == (digest_of(blob), len(blob))
    assert time.monotonic() - began > 2 * registry_http.CONNECT_SECONDS
    assert served.seen[1].body == blob


def test_what_takes_no_upload_of_that_name() -> None:
    with (
        serving(error(404, "NOT_FOUND", "no project 'a'")) as served,
        pytest.raises(RegistryError, match=r"no project 'a'"),
    ):
        Registry(served.address).upload_blob("a/b", [b"x"])


@pytest.mark.parametrize(
    ("address", "secure", "expected"),
    [
        ("localhost:41233", None, "http://127.0.0.1:41233"),
        ("lab.localhost:5", None, "http://lab.localhost:5"),
        ("127.8.0.1:5", None, "http://127.8.0.1:5"),
        ("192.168.1.5:5", None, "https://192.168.1.5:5"),
        ("localhost.example.com", None, "https://localhost.example.com"),
        ("[::1]:5", None, "http://[::1]:5"),
        ("r.test:5", False, "http://r.test:5"),
        ("localhost:5", True, "https://127.0.0.1:5"),
        ("docker.io", None, "https://registry-1.docker.io"),
    ],
)
def test_where_a_registry_is(address: str, secure: bool | None, expected: str) -> None:
    assert url_of(address, secure=secure) == expected


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
