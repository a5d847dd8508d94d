"""The registry client against servers that misbehave, on real sockets."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registries import Reply, Seen, Server, error, serving, told, typed

from labapp.errors import (
    DamagedContent,
    InvalidReference,
    LabError,
    NotInRegistry,
    RegistryError,
    RegistryUnreachable,
)
from labapp.machine.ports import free_port
from labapp.reference import Reference
from labapp.registry import http as registry_http
from labapp.registry.client import Registry, RegistryImage
from labapp.registry.http import same_address, same_origin, url_of
from labapp.registry.manifests import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    canonical_json,
    digest_of,
    parse_config,
    parse_manifest,
)

ABSENT = "sha256:" + "f" * 64
MANIFEST = canonical_json(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": "sha256:" + "0" * 64, "size": 2},
        "layers": [{"mediaType": OCI_LAYER, "digest": "sha256:" + "1" * 64, "size": 5}],
    }
)
BLOB = digest_of(b"hello")
IMAGE = RegistryImage(
    Reference.parse("localhost:1/shop/web:1"),
    parse_manifest(MANIFEST),  # type: ignore[arg-type]
    parse_config(b'{"os": "linux", "architecture": "amd64", "rootfs": {}}'),
)


# --- nothing, or something else, at the address


def test_nothing_listens() -> None:
    address = f"localhost:{free_port()}"
    with pytest.raises(RegistryUnreachable, match=address) as caught:
        Registry(address).ping()
    assert "python3 -m labapp start" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(RegistryUnreachable, match=r"'nowhere\.invalid:5000'") as caught:
        Registry("nowhere.invalid:5000", secure=False).ping()
    assert "labapp start" not in str(caught.value)


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(told({})) as registry:
        Registry(registry.address).ping()
    with pytest.raises(RegistryUnreachable, match="proxy"):
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
    with serving(reply) as other, pytest.raises(RegistryError, match=other.address) as caught:
        Registry(other.address).ping()
    assert "AirPlay" in str(caught.value)


# --- refusals: the error's type, and the fact that it must tell


@pytest.mark.parametrize(
    ("reply", "kind", "fact"),
    [
        (error(400, "NAME_INVALID", "invalid repository name"), RegistryError, "repository name"),
        (error(401, "UNAUTHORIZED", "who are you"), RegistryError, "docker login"),
        (error(403, "DENIED", "requested access is denied"), RegistryError, "docker login"),
        (error(404, "NAME_UNKNOWN"), NotInRegistry, "shop/web"),
        (error(405, "UNSUPPORTED", "The operation is unsupported."), RegistryError, "unsupported"),
        (error(429, "TOOMANYREQUESTS"), RegistryError, "too many requests"),
        (error(500, "UNKNOWN", "unknown error"), RegistryError, "unknown error"),
        (Reply(502, b"bad gateway"), RegistryError, "502"),
        (Reply(507), RegistryError, "disk"),
        (error(500, "UNKNOWN", "", "write /var: no space left on device"), RegistryError, "disk"),
        (
            error(500, "UNKNOWN", "", {"Enclosed": {"Op": "mkdir", "Err": 28}}),
            RegistryError,
            "disk",
        ),
        (typed(b"<html>", "text/html"), RegistryError, "not a registry"),
        (told({"tags": "all"}), RegistryError, "not a registry"),
    ],
)
def test_refusals(reply: Reply, kind: type[LabError], fact: str) -> None:
    with serving(reply) as registry, pytest.raises(kind, match=fact) as caught:
        Registry(registry.address).tags("shop/web")
    assert f"'{registry.address}/shop/web': " in str(caught.value)


def test_a_tag_that_is_missing_tells_those_there_are() -> None:
    def answer(seen: Seen) -> Reply:
        return told({"tags": ["1.1", "1.0"]}) if "/tags/" in seen.path else error(404, "UNKNOWN")

    with serving(answer) as served:
        registry = Registry(served.address)
        with pytest.raises(NotInRegistry, match=r"'2\.0', .* 1\.0, 1\.1\."):
            registry.digest(f"{served.address}/shop/web:2.0")
        with pytest.raises(NotInRegistry, match=ABSENT):
            registry.manifest("shop/web", ABSENT)


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
        lambda registry: registry.copy(registry, IMAGE, to="python:3.13"),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_sent(ask: Callable[[Registry], Any]) -> None:
    with serving(told({})) as served:
        with pytest.raises(InvalidReference):
            ask(Registry(served.address))
        assert served.seen == []


# --- manifests


@pytest.mark.parametrize("header", [{}, {"Docker-Content-Digest": digest_of(MANIFEST)}])
def test_a_digest_costs_one_request(header: dict[str, str]) -> None:
    with serving(typed(MANIFEST, OCI_MANIFEST, **header)) as served:
        name = f"{served.address}/shop/web:1"
        assert Registry(served.address).digest(name) == digest_of(MANIFEST)
        methods = [seen.method for seen in served.seen]
    assert methods == (["HEAD"] if header else ["HEAD", "GET"])


@pytest.mark.parametrize(
    ("reply", "identifier", "kind"),
    [
        (typed(MANIFEST, OCI_MANIFEST), ABSENT, DamagedContent),
        (typed(MANIFEST, OCI_MANIFEST, **{"Docker-Content-Digest": ABSENT}), "1", DamagedContent),
        (typed(MANIFEST, OCI_INDEX), "1", DamagedContent),
        (typed(b"{}", OCI_MANIFEST), "1", DamagedContent),
        (typed(b"<html>", "text/html"), "1", RegistryError),
        (typed(b" " * (4 * 1024 * 1024 + 1), OCI_MANIFEST), "1", RegistryError),
        (
            Reply(200, MANIFEST, {"Content-Type": OCI_MANIFEST}, cut_after=40),
            "1",
            RegistryUnreachable,
        ),
    ],
)
def test_a_manifest_that_can_not_be_trusted(
    reply: Reply, identifier: str, kind: type[LabError]
) -> None:
    with serving(reply) as registry, pytest.raises(kind) as caught:
        Registry(registry.address).manifest("shop/web", identifier)
    assert type(caught.value) is kind


@pytest.mark.parametrize("media_type", ["application/json", "text/plain; charset=utf-8", ""])
def test_a_manifest_of_no_useful_content_type_tells_its_own(media_type: str) -> None:
    with serving(typed(MANIFEST, media_type)) as registry:
        assert Registry(registry.address).manifest("shop/web", "1").media_type == OCI_MANIFEST


CHART = "application/vnd.cncf.helm.config.v1+json"
SIGNATURE = "application/vnd.dev.cosign.simplesigning.v1+json"
SBOM = "application/vnd.example.sbom"


@pytest.mark.parametrize(
    ("config", "layer", "artifact_type", "named"),
    [
        (CHART, "application/vnd.cncf.helm.chart.content.v1.tar+gzip", None, CHART),
        (OCI_CONFIG, SIGNATURE, None, SIGNATURE),
        (OCI_CONFIG, "application/vnd.in-toto+json", None, "application/vnd.in-toto+json"),
        ("application/vnd.oci.empty.v1+json", "text/plain", SBOM, SBOM),
        ("application/vnd.oci.empty.v1+json", "text/plain", None, "text/plain"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(
    config: str, layer: str, artifact_type: str | None, named: str
) -> None:
    content = json.loads(MANIFEST) | {"artifactType": artifact_type}
    content["config"]["mediaType"], content["layers"][0]["mediaType"] = config, layer
    with (
        serving(typed(json.dumps(content).encode(), OCI_MANIFEST)) as registry,
        pytest.raises(RegistryError, match=named.replace("+", r"\+")) as caught,
    ):
        Registry(registry.address).image(f"{registry.address}/shop/web:1")
    assert not isinstance(caught.value, DamagedContent)


# --- pages


def test_all_pages_are_read_and_never_lead_to_another_host() -> None:
    def answer(seen: Seen) -> Reply:
        if "last=b" in seen.path:
            return told({"tags": ["c"]})
        link = '<http://elsewhere.invalid/v2/shop/web/tags/list?last=b&n=2>; rel="next"'
        return typed(b'{"tags": ["b", "a"]}', "application/json", Link=link)

    with serving(answer) as registry:
        assert Registry(registry.address).tags("shop/web") == ["a", "b", "c"]
        assert registry.seen[-1].path == "/v2/shop/web/tags/list?last=b&n=2"


def test_a_repository_whose_tags_were_all_deleted() -> None:
    with serving(told({"tags": None})) as registry:
        assert Registry(registry.address).tags("shop/web") == []


# --- blobs


@pytest.mark.parametrize(
    ("reply", "size", "kind"),
    [
        (Reply(200, b"hallo"), 5, DamagedContent),
        (Reply(200, b"hell"), 5, DamagedContent),
        (Reply(200, b"hell"), None, DamagedContent),
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


def test_a_whole_blob_by_each_algorithm() -> None:
    sha512 = (
        "sha512:9b71d224bd62f3785d96d46ad3ea3d73319bfbc2890caadae2dff72519673ca"
        "72323c3d99ba5c11d7c7acc6e14b8c5da0c4663475c2e5c3adef46f73bcdec043"
    )
    with serving(Reply(200, b"hello")) as registry:
        for digest in (BLOB, sha512):
            assert Registry(registry.address).read_blob("shop/web", digest) == b"hello"


def test_a_blob_larger_than_asked_for_is_not_held() -> None:
    body = b"x" * 3_000_000
    with serving(Reply(200, body)) as registry:
        with pytest.raises(RegistryError, match="1,000 bytes"):
            Registry(registry.address).read_blob("shop/web", digest_of(body), limit=1000)
        assert Registry(registry.address).read_blob("shop/web", digest_of(body)) == body


# --- registries that would keep us for ever


def endless(size: int = 100_000, pause: float = 0.0) -> Iterator[bytes]:
    for _ in range(2000):
        yield b"x" * size
        time.sleep(pause)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda seen: Reply(chunks=endless()), DamagedContent),
        (lambda seen: Reply(chunks=endless(1, 0.02)), RegistryUnreachable),
        (lambda seen: Reply(307, b"", {"Location": "/again"}, chunks=endless()), RegistryError),
        (
            lambda seen: (
                Reply(307, b"", {"Location": "/there"}, chunks=endless())
                if "blobs" in seen.path
                else Reply(body=b"hallo")
            ),
            DamagedContent,
        ),
    ],
    ids=["without end", "drips", "sent on in a circle", "a redirect without end"],
)
def test_a_blob_that_would_never_end(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[Seen], Reply], kind: type[LabError]
) -> None:
    monkeypatch.setattr(registry_http, "ANSWER_SECONDS", 0.3)
    with serving(answer) as registry:
        began = time.monotonic()
        with pytest.raises(kind):
            for _ in Registry(registry.address).open_blob("shop/web", BLOB, size=5_000_00):
                pass
        assert time.monotonic() - began < 2


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_http, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RegistryUnreachable, match=address):
            Registry(address).ping()


def test_a_list_without_end() -> None:
    numbers = itertools.count()

    def answer(seen: Seen) -> Reply:
        link = f'</v2/a/tags/list?last={next(numbers)}>; rel="next"'
        listed = typed(b'{"tags": ["1"]}', "application/json", Link=link)
        return listed if "/tags/" in seen.path else error(404, "UNKNOWN")

    with serving(answer) as served:
        registry = Registry(served.address)
        with pytest.raises(NotInRegistry):
            registry.resolve("a", "2")  # one page is enough to say what there is
        assert len(served.seen) == 2
        with pytest.raises(RegistryError, match="no end"):
            registry.tags("a")


# --- words that a terminal would obey


ESCAPE = "\x1b]0;gotcha\x07\x9b31m\u202e"


def index(os: str) -> bytes:
    platform = {"os": os, "architecture": "amd64"}
    entry = {"mediaType": OCI_MANIFEST, "digest": ABSENT, "size": 1, "platform": platform}
    return json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()


@pytest.mark.parametrize(
    "reply",
    [
        error(400, "X", f"no {ESCAPE}"),
        typed(MANIFEST, f"text/html{ESCAPE[:-1]}"),
        typed(json.dumps({"mediaType": ESCAPE}).encode(), ""),
        typed(index(ESCAPE), OCI_INDEX),
        typed(json.dumps(json.loads(MANIFEST) | {"artifactType": ESCAPE}).encode().replace(
            b"image.config", b"other"), OCI_MANIFEST),
        typed(MANIFEST, OCI_MANIFEST, **{"Docker-Content-Digest": ESCAPE[:-1]}),
        Reply(307, b"", {"Location": f"http://[{ESCAPE[:-1]}/"}),
        Reply(401, b"", {"WWW-Authenticate": f'Bearer realm="http://a{ESCAPE[:-1]}/"'}),
    ],
)  # fmt: skip
def test_no_word_of_a_registry_reaches_the_terminal_raw(reply: Reply) -> None:
    with serving(reply) as served, pytest.raises(RegistryError) as caught:
        registry = Registry(served.address, credentials=lambda _: None)
        registry.image(f"{served.address}/shop/web:1")
    assert not set(str(caught.value)) & set("\x1b\x07\x9b\u202e")


def test_tags_are_fit_to_print() -> None:
    with serving(told({"tags": [f"1{ESCAPE}", "\ud800"]})) as registry:
        for tag in Registry(registry.address).tags("shop/web"):
            assert tag.isprintable()
            tag.encode()


@pytest.mark.parametrize(
    "place",
    ["http://[::bad/d", "http://a:b/", "ftp://localhost/", "http://\u00ff..:5/", "//", "http://"],
)
def test_a_redirect_to_what_is_no_address(place: str) -> None:
    with serving(Reply(307, b"", {"Location": place})) as registry, pytest.raises(RegistryError):
        Registry(registry.address).read_blob("shop/web", BLOB)


def test_a_redirect_to_a_dead_host_names_that_host() -> None:
    elsewhere = f"127.0.0.1:{free_port()}"
    with (
        serving(Reply(307, b"", {"Location": f"http://{elsewhere}/blob"})) as registry,
        pytest.raises(RegistryUnreachable, match=f"'{elsewhere}'"),
    ):
        Registry(registry.address).read_blob("shop/web", BLOB)


# --- any answer at all


@pytest.fixture(scope="module")
def any_server() -> Iterator[Server]:
    with serving(Reply()) as server:
        yield server


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    status=st.sampled_from([200, 201, 202, 204, 206, 302, 400, 404, 418, 500, 503]),
    body=st.binary(max_size=60) | st.sampled_from([b'{"errors": [3]}', b'{"tags": [1]}', b"[]"]),
    media_type=st.sampled_from(["", "application/json", OCI_MANIFEST, OCI_INDEX, "text/html", ";"]),
    digest=st.sampled_from(["", "sha256:12", ABSENT, "md5:x"]),
    length=st.sampled_from([None, "0", "x", "\u00b2"]),
    place=st.sampled_from(["", "/v2/x", "http://[", "/%zz?a"]),
)
def test_any_answer_gives_a_result_or_a_lab_error(
    any_server: Server,
    status: int,
    body: bytes,
    media_type: str,
    digest: str,
    length: str | None,
    place: str,
) -> None:
    headers = {"Content-Type": media_type, "Docker-Content-Digest": digest, "Location": place}
    body = b"" if status == 204 else body
    if length is not None:
        headers["Content-Length"] = length
    reply = Reply(status, body, headers, cut_after=len(body))
    any_server.answer = lambda _: reply
    registry = Registry(any_server.address)
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


# --- addresses


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


@pytest.mark.parametrize(
    ("address", "secure", "expected"),
    [
        ("localhost:41233", None, "http://127.0.0.1:41233"),
        ("lab.localhost:5", None, "http://lab.localhost:5"),
        ("127.8.0.1:5", None, "http://127.8.0.1:5"),
        ("192.168.1.5:5", None, "https://192.168.1.5:5"),
        ("localhost.example.com", None, "https://localhost.example.com"),
        ("[::1]:5", None, "http://[::1]:5"),
        ("r.test", None, "https://r.test"),
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
        ("http://localhost:6/v2/", "http://127.0.0.1:5", False),
    ],
)
def test_same_origin(one: str, other: str, expected: bool) -> None:
    assert same_origin(one, other) is expected


def test_the_client_is_quick_to_import() -> None:
    """A command that asks a registry one thing does not pay for tables, notebooks or an engine."""
    program = "import sys, labapp.registry.client; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not {"pandas", "docker", "IPython", "matplotlib"} & set(ran.stdout.split())
