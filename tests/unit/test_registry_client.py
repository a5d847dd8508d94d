"""The registry client against servers that misbehave, on real sockets."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labapp.errors import (
    DamagedContent,
    InvalidReference,
    LabError,
    NotInRegistry,
    RegistryError,
    RegistryUnreachable,
)
from labapp.manifests import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, digest_of
from labapp.registry import Registry
from labapp.registry import http as registry_http
from labapp.registry.addresses import is_loopback, same_address
from labapp.registry.reader import RegistryReader
from labapp.system.ports import free_port, is_listening, says_taken

MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": "sha256:" + "0" * 64, "size": 2},
        "layers": [{"mediaType": OCI_LAYER, "digest": "sha256:" + "1" * 64, "size": 5}],
    }
).encode()
ABSENT = "sha256:" + "f" * 64


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # break the connection after that many bytes of the body


@contextmanager
def serving(answer: Callable[[str, str], Reply]) -> Iterator[str]:
    """Serve what a function of method and path says; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reply = answer(self.command, self.path)
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body[: reply.cut_after])
            if reply.cut_after is not None:
                self.close_connection = True

        do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = respond

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def typed(body: bytes, media_type: str, **headers: str) -> Reply:
    return Reply(body=body, headers={"Content-Type": media_type, **headers})


def error(status: int, code: str, message: str = "", detail: object = None) -> Reply:
    content = {"errors": [{"code": code, "message": message, "detail": detail}]}
    return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


# --- nothing, or something else, at the address


def test_nothing_listens() -> None:
    address = f"localhost:{free_port()}"
    with pytest.raises(RegistryUnreachable) as caught:
        Registry(address).ping()
    assert f"connection refused, nothing listens at '{address}'" in str(caught.value)
    assert "python3 -m labapp start" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(RegistryUnreachable, match=r"the name in 'nowhere\.invalid:5000'"):
        Registry("nowhere.invalid:5000", secure=False).ping()


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_http, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RegistryUnreachable, match="has not answered for"):
            Registry(address).ping()


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with serving(lambda *_: typed(b"{}", "application/json")) as address:
        Registry(address).ping()


def test_a_proxy_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(RegistryUnreachable, match="the proxy that is set here"):
        Registry("registry.invalid:5000", secure=False).ping()


@pytest.mark.parametrize(
    "reply",
    [
        Reply(403, b"", {"Server": "AirTunes/760.20.1"}),
        Reply(404, b"<h1>not here</h1>", {"Content-Type": "text/html"}),
        Reply(404, b"404 page not found", {"Content-Type": "text/plain"}),
        typed(b"<h1>welcome</h1>", "text/html; charset=utf-8"),
    ],
)
def test_what_answers_is_not_a_registry(reply: Reply) -> None:
    with (
        serving(lambda *_: reply) as address,
        pytest.raises(RegistryError, match="is not a registry") as caught,
    ):
        Registry(address).ping()
    assert address in str(caught.value)
    assert "AirPlay" in str(caught.value)


# --- refusals


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (error(400, "NAME_INVALID", "invalid repository name"), RegistryError, "repository name"),
        (error(401, "UNAUTHORIZED", "authentication required"), RegistryError, "wants a login"),
        (error(403, "DENIED", "requested access is denied"), RegistryError, "wants a login"),
        (error(404, "NAME_UNKNOWN"), NotInRegistry, "there is no repository 'shop/web'"),
        (error(405, "UNSUPPORTED", "The operation is unsupported."), RegistryError, "unsupported"),
        (error(429, "TOOMANYREQUESTS"), RegistryError, "too many requests"),
        (error(500, "UNKNOWN", "unknown error"), RegistryError, r"failed \(unknown error\)"),
        (Reply(502, b"bad gateway"), RegistryError, r"failed \(status 502\)"),
        (Reply(507), RegistryError, "disk under the registry is full"),
        (
            error(500, "UNKNOWN", "unknown error", "write /var: no space left on device"),
            RegistryError,
            "disk under the registry is full",
        ),
        (
            error(500, "UNKNOWN", "", {"Enclosed": {"Op": "mkdir", "Path": "/v", "Err": 28}}),
            RegistryError,
            "disk under the registry is full",
        ),
        (typed(b"<html>", "text/html"), RegistryError, "is not a registry"),
        (typed(b'{"tags": "all"}', "application/json"), RegistryError, "is not a registry"),
    ],
)
def test_refusals_in_words(reply: Reply, kind: type[LabError], words: str) -> None:
    with serving(lambda *_: reply) as address, pytest.raises(kind, match=words) as caught:
        Registry(address).tags("shop/web")
    assert str(caught.value).startswith(f"listing the tags of '{address}/shop/web': ")


def test_a_tag_that_is_missing_tells_those_there_are() -> None:
    def answer(method: str, path: str) -> Reply:
        if "/tags/" in path:
            return typed(b'{"tags": ["1.1", "1.0"]}', "application/json")
        return error(404, "MANIFEST_UNKNOWN")

    with serving(answer) as address:
        with pytest.raises(NotInRegistry, match=r"no tag '2\.0', .* the tags 1\.0, 1\.1\."):
            Registry(address).resolve("shop/web", "2.0")
        with pytest.raises(NotInRegistry, match="no manifest with that digest"):
            Registry(address).manifest("shop/web", ABSENT)


@pytest.mark.parametrize(
    ("repository", "identifier", "words"),
    [
        ("Shop/web", "1", "upper-case"),
        ("shop web", "1", "space|not allowed"),
        ("shop/web", "a b", "space|not allowed"),
        ("shop/web", "sha256:12", "digits"),
        ("../_catalog", "1", "separator"),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_sent(
    repository: str, identifier: str, words: str
) -> None:
    registry = Registry(f"localhost:{free_port()}")
    with pytest.raises(InvalidReference, match=words):
        registry.manifest(repository, identifier)


def test_a_reference_to_another_registry() -> None:
    with pytest.raises(InvalidReference, match=r"in the registry 'docker\.io', not in"):
        Registry("localhost:41233").image("python:3.13")


# --- manifests


@pytest.mark.parametrize("header", [{}, {"Docker-Content-Digest": digest_of(MANIFEST)}])
def test_resolve_with_and_without_the_digest_header(header: dict[str, str]) -> None:
    with serving(lambda *_: typed(MANIFEST, OCI_MANIFEST, **header)) as address:
        assert Registry(address).resolve("shop/web", "1") == digest_of(MANIFEST)


@pytest.mark.parametrize(
    ("reply", "identifier", "kind", "words"),
    [
        (typed(MANIFEST, OCI_MANIFEST), ABSENT, DamagedContent, "do not match the digest"),
        (
            typed(MANIFEST, OCI_MANIFEST, **{"Docker-Content-Digest": ABSENT}),
            "1",
            DamagedContent,
            "do not match the digest",
        ),
        (typed(MANIFEST, OCI_INDEX), "1", DamagedContent, "but says that it is"),
        (typed(b"{}", OCI_MANIFEST), "1", DamagedContent, "'config' is missing"),
        (typed(b"<html>", "text/html"), "1", RegistryError, "is not a registry"),
        (
            typed(b" " * (4 * 1024 * 1024 + 1), OCI_MANIFEST),
            "1",
            RegistryError,
            "longer than 4 MiB",
        ),
        (
            Reply(200, MANIFEST, {"Content-Type": OCI_MANIFEST}, cut_after=40),
            "1",
            RegistryUnreachable,
            "broke off",
        ),
    ],
)
def test_a_manifest_that_can_not_be_trusted(
    reply: Reply, identifier: str, kind: type[LabError], words: str
) -> None:
    with serving(lambda *_: reply) as address, pytest.raises(kind, match=words) as caught:
        Registry(address).manifest("shop/web", identifier)
    assert "reading the manifest 'shop/web" in str(caught.value) or "sha256:" in str(caught.value)


@pytest.mark.parametrize("media_type", ["application/json", "text/plain; charset=utf-8", ""])
def test_a_manifest_of_no_useful_content_type_tells_its_own(media_type: str) -> None:
    with serving(lambda *_: typed(MANIFEST, media_type)) as address:
        assert Registry(address).manifest("shop/web", "1").media_type == OCI_MANIFEST


# --- pages


def test_all_pages_are_read() -> None:
    def answer(method: str, path: str) -> Reply:
        if "last=b" in path:
            return typed(b'{"tags": ["c"]}', "application/json")
        link = '</v2/shop/web/tags/list?last=b&n=2>; rel="next"'
        return typed(b'{"tags": ["a", "b"]}', "application/json", Link=link)

    with serving(answer) as address:
        assert Registry(address).tags("shop/web") == ["a", "b", "c"]


def test_pages_never_lead_to_another_host() -> None:
    asked = []

    def answer(method: str, path: str) -> Reply:
        asked.append(path)
        if "last=a" in path:
            return typed(b'{"repositories": ["b"]}', "application/json")
        link = '<http://elsewhere.invalid/v2/_catalog?last=a>; rel="next"'
        return typed(b'{"repositories": ["a"]}', "application/json", Link=link)

    with serving(answer) as address:
        assert Registry(address).repositories() == ["a", "b"]
    assert asked[-1] == "/v2/_catalog?last=a"


def test_pages_in_a_circle_end() -> None:
    link = '</v2/_catalog?again>; rel="next"'
    reply = typed(b'{"repositories": ["a"]}', "application/json", Link=link)
    with serving(lambda *_: reply) as address, pytest.raises(RegistryError, match="circle"):
        Registry(address).repositories()


def test_a_repository_whose_tags_were_all_deleted() -> None:
    with serving(lambda *_: typed(b'{"tags": null}', "application/json")) as address:
        assert Registry(address).tags("shop/web") == []


# --- blobs


@pytest.mark.parametrize(
    ("reply", "size", "kind", "words"),
    [
        (Reply(200, b"hallo"), 5, DamagedContent, "do not match the digest"),
        (Reply(200, b"hell"), 5, DamagedContent, "4 bytes instead of 5"),
        (Reply(200, b"hell"), None, DamagedContent, "do not match the digest"),
        (Reply(200, b""), None, DamagedContent, "do not match the digest"),
        (Reply(200, b"hello", cut_after=3), 5, RegistryUnreachable, "broke off"),
        (error(404, "BLOB_UNKNOWN"), 5, NotInRegistry, "there is no such blob"),
    ],
)
def test_a_blob_that_can_not_be_trusted(
    reply: Reply, size: int | None, kind: type[LabError], words: str
) -> None:
    digest = digest_of(b"hello")
    with serving(lambda *_: reply) as address, pytest.raises(kind, match=words) as caught:
        list(Registry(address).open_blob("shop/web", digest, size=size))
    assert digest in str(caught.value)


def test_a_whole_blob_by_each_algorithm() -> None:
    sha512 = (
        "sha512:9b71d224bd62f3785d96d46ad3ea3d73319bfbc2890caadae2dff72519673ca"
        "72323c3d99ba5c11d7c7acc6e14b8c5da0c4663475c2e5c3adef46f73bcdec043"
    )
    with serving(lambda *_: Reply(200, b"hello")) as address:
        registry = RegistryReader(address)
        assert registry.read_blob("shop/web", digest_of(b"hello")) == b"hello"
        assert registry.read_blob("shop/web", sha512) == b"hello"


def test_a_blob_larger_than_asked_for_is_not_held() -> None:
    body = b"x" * 3_000_000
    with serving(lambda *_: Reply(200, body)) as address:
        with pytest.raises(RegistryError, match="longer than 1,000 bytes"):
            Registry(address).read_blob("shop/web", digest_of(body), limit=1000)
        assert Registry(address).read_blob("shop/web", digest_of(body)) == body


# --- uploads


def test_an_upload_without_a_place_to_go() -> None:
    with (
        serving(lambda *_: Reply(202)) as address,
        pytest.raises(RegistryError, match="did not say where to"),
    ):
        Registry(address).upload_blob("shop/web", [b"x"])


def test_a_registry_that_stores_another_manifest() -> None:
    reply = Reply(201, headers={"Docker-Content-Digest": ABSENT})
    with serving(lambda *_: reply) as address, pytest.raises(DamagedContent, match="calls it"):
        Registry(address).put_manifest("shop/web", "1", MANIFEST, OCI_MANIFEST)


# --- any answer at all


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    status=st.sampled_from([200, 201, 202, 204, 206, 400, 404, 418, 500, 503]),
    body=st.binary(max_size=60) | st.sampled_from([b'{"errors": [3]}', b'{"tags": [1]}', b"[]"]),
    media_type=st.sampled_from(["", "application/json", OCI_MANIFEST, OCI_INDEX, "text/html", ";"]),
    digest=st.sampled_from(["", "sha256:12", ABSENT, "md5:x"]),
    length=st.sampled_from([None, "0", "x"]),
)
def test_any_answer_gives_a_result_or_a_lab_error(
    any_server: tuple[str, list[Reply]],
    status: int,
    body: bytes,
    media_type: str,
    digest: str,
    length: str | None,
) -> None:
    address, replies = any_server
    headers = {"Content-Type": media_type, "Docker-Content-Digest": digest}
    body = b"" if status == 204 else body
    if length is not None:
        headers["Content-Length"] = length
    replies[:] = [Reply(status, body, headers, cut_after=len(body))]
    registry = Registry(address)
    for ask in (
        registry.ping,
        registry.repositories,
        lambda: registry.resolve("a/b", "1"),
        lambda: registry.manifest("a/b", "1"),
        lambda: registry.blob_size("a/b", ABSENT),
        lambda: registry.read_blob("a/b", ABSENT),
        lambda: registry.upload_blob("a/b", [b"x"]),
    ):
        try:
            ask()
        except LabError:
            continue


@pytest.fixture
def any_server() -> Iterator[tuple[str, list[Reply]]]:
    replies = [Reply()]
    with serving(lambda *_: replies[0]) as address:
        yield address, replies


# --- addresses and ports


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("lab.localhost", True),
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("192.168.1.5", False),
        ("localhost.example.com", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("localhost:5", "127.0.0.1:5", True),
        ("[::1]:5", "localhost:5", True),
        ("localhost:5", "localhost:6", False),
        ("mirror:5", "mirror:5", True),
        ("mirror:5", "localhost:5", False),
        ("docker.io", "docker.io", True),
    ],
)
def test_same_address(one: str, other: str, expected: bool) -> None:
    assert same_address(one, other) is expected


def test_a_port_is_free_until_something_listens() -> None:
    port = free_port()
    assert not is_listening(port)
    with socket.create_server(("127.0.0.1", port)):
        assert is_listening(port)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("listen tcp4 127.0.0.1:41000: bind: address already in use", True),
        ("Bind for 127.0.0.1:41000 failed: port is already allocated", True),
        ("Ports are not available: exposing port TCP 127.0.0.1:5000", True),
        ("No such image: reg:1", False),
    ],
)
def test_says_taken(message: str, expected: bool) -> None:
    assert says_taken(message) is expected
