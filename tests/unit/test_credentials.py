"""Logins: what docker keeps, what a registry asks for, and where a password never goes."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import urllib3
from registries import Reply, Seen, Server, sent_on, serving, told
from requests.adapters import HTTPAdapter

from labapp.errors import RegistryError
from labapp.registry.client import Registry
from labapp.registry.http import Credentials, docker_credentials
from labapp.registry.manifests import digest_of

LEARNER = Credentials("learner", "correct horse")
TOKEN = Credentials("", identity_token="correct horse")
BLOB = b"a layer"
TAGS = told({"tags": ["1"]})
BASIC = 'Basic realm="a registry"'
HUB = "https://index.docker.io/v1/"
SCOPE = "repository:shop/web:pull,push repository:b:pull"


def client(served: Server, known: Credentials | None = LEARNER) -> Registry:
    return Registry(served.address, credentials=lambda _: known)


def challenge(header: str) -> Reply:
    return Reply(401, b"", {"WWW-Authenticate": header})


def bearer(address: str) -> str:
    return f'Bearer realm="http://{address}/token",service="a, b",scope="{SCOPE}"'


@contextlib.contextmanager
def guarded(
    given: Reply | Callable[[Seen], Reply],
    answer: Callable[[Seen], Reply | None] = lambda seen: (
        TAGS if seen.authorization == "Bearer abc" else None
    ),
) -> Iterator[tuple[Server, Server]]:
    """A registry that asks for a token where it has no answer, and the service that gives one."""
    with serving(given) as service:
        ask = challenge(f"{BASIC}\n{bearer(service.address)}")
        with serving(lambda seen: answer(seen) or ask) as registry:
            yield registry, service


# --- what docker keeps


def pair(name: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:{password}".encode()).decode()}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Docker's configuration, to be written by the test; two programs on the PATH keep logins."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name, user, secret in (("keychain", "a", "b"), ("tokens", "<token>", "t")):
        answer = json.dumps({"Username": user, "Secret": secret})
        helper = tmp_path / f"docker-credential-{name}"
        helper.write_text(f"#!/bin/sh\necho '{answer}'\n", encoding="utf-8")
        helper.chmod(0o755)
    return tmp_path / "config.json"


@pytest.mark.filterwarnings("ignore:.*not installed or not available")
@pytest.mark.parametrize(
    ("kept", "address", "expected"),
    [
        ({"auths": {"localhost:5": pair("a", "b:c")}}, "localhost:5", Credentials("a", "b:c")),
        ({"auths": {"localhost:5": pair("a", "b")}}, "localhost:6", None),
        ({"auths": {"https://r.test/v1/": pair("a", "b")}}, "r.test", Credentials("a", "b")),
        ({"auths": {HUB: pair("a", "ü")}}, "docker.io", Credentials("a", "ü")),
        ({"auths": {"r.test": {"identitytoken": "t"}}}, "r.test", Credentials("", "", "t")),
        ({"auths": {"r.test": {}}}, "r.test", None),
        ({"credsStore": "keychain"}, "r.test", Credentials("a", "b")),
        ({"credsStore": "tokens"}, "r.test", Credentials("", "", "t")),
        ({"credsStore": "nosuch-helper"}, "r.test", RegistryError),
        ({"auths": {"r.test": {"auth": "no base64!"}}}, "r.test", RegistryError),
        ({"auths": {"r.test": 3}}, "r.test", RegistryError),
        ([3], "r.test", RegistryError),
    ],
)
def test_what_docker_login_kept(config: Path, kept: object, address: str, expected: Any) -> None:
    config.write_text(json.dumps(kept), encoding="utf-8")
    if expected is RegistryError:
        with pytest.raises(RegistryError, match=r"docker login r\.test"):
            docker_credentials(address)
    else:
        assert docker_credentials(address) == expected


def test_a_password_is_not_shown() -> None:
    assert "horse" not in f"{LEARNER!r} {TOKEN!r}"


# --- a challenge


def test_a_broken_helper_keeps_nobody_from_public_images() -> None:
    def broken(address: str) -> Credentials:
        raise RegistryError("looking up the login: no keychain. Mend it.")

    def answer(seen: Seen) -> Reply | None:
        return TAGS if "public" in seen.path and seen.authorization else None

    with guarded(told({"token": "abc"}), answer) as (served, _):
        registry = Registry(served.address, credentials=broken)
        assert registry.tags("shop/public") == ["1"]
        with pytest.raises(RegistryError, match="no keychain"):
            registry.tags("shop/private")


def test_a_password_is_looked_up_and_sent_once_it_is_asked_for_and_then_at_once() -> None:
    asked = []

    def answer(seen: Seen) -> Reply:
        let_in = "public" in seen.path or seen.authorization == LEARNER.basic
        return TAGS if let_in else challenge(BASIC)

    with serving(answer) as served:
        registry = Registry(served.address, credentials=lambda _: asked.append(1) or LEARNER)
        registry.tags("shop/public")
        assert asked == []
        assert [registry.tags("shop/web"), registry.tags("shop/web")] == [["1"], ["1"]]
    shown = [seen.authorization for seen in served.seen]
    assert shown == [None, None, LEARNER.basic, LEARNER.basic]


REFRESH = {"grant_type": ["refresh_token"], "refresh_token": ["correct horse"], "scope": [SCOPE]}


@pytest.mark.parametrize(
    ("known", "method", "authorization", "further"),
    [
        (None, "GET", None, {"scope": SCOPE.split()}),
        (LEARNER, "GET", LEARNER.basic, {"scope": SCOPE.split(), "account": ["learner"]}),
        (TOKEN, "POST", None, REFRESH),
    ],
)
def test_the_token_service_is_asked_as_the_specification_says(
    known: Credentials | None,
    method: str,
    authorization: str | None,
    further: dict[str, list[str]],
) -> None:
    with guarded(told({"access_token": "abc"})) as (registry, service):
        assert client(registry, known).tags("shop/web") == ["1"]
    (asked,) = service.seen
    fields = parse_qs(urlsplit(asked.path).query or asked.body.decode())
    assert fields == {"service": ["a, b"], "client_id": ["labapp"], **further}
    assert (asked.method, asked.authorization) == (method, authorization)


def test_a_token_lasts_for_one_repository_and_one_right() -> None:
    def answer(seen: Seen) -> Reply | None:
        return TAGS if seen.authorization else None

    with guarded(told({"token": "abc"}), answer) as (served, service):
        registry = client(served, None)
        for _ in range(2):
            registry.tags("shop/web")
            registry.blob_size("shop/web", digest_of(BLOB))
        assert len(service.seen) == 1
        registry.put_manifest("shop/web", "1", b"{}", "text/plain")
        registry.tags("shop/other")
        assert len(service.seen) == 3


def test_an_upload_is_sent_again_with_its_body() -> None:
    """The token of the past is refused in mid-upload, and a new one is had."""
    given = (told({"token": token}) for token in ("t1", "t2"))

    def answer(seen: Seen) -> Reply | None:
        if seen.authorization != ("Bearer t1" if seen.method == "POST" else "Bearer t2"):
            return None
        status = {"POST": 202, "PATCH": 202, "PUT": 201}[seen.method]
        return Reply(status, b"", {"Location": "/v2/shop/web/blobs/uploads/1"})

    with guarded(lambda seen: next(given), answer) as (registry, _):
        client(registry).upload_blob("shop/web", [BLOB])
    sent = [(seen.method, seen.body) for seen in registry.seen if seen.authorization]
    assert sent == [("POST", b""), ("PATCH", BLOB), ("PATCH", BLOB), ("PUT", b"")]


REFUSED = "'learner'.*docker login"


@pytest.mark.parametrize(
    ("reply", "fact"),
    [
        (told({"errors": [{"message": "no such user"}]}, 401), REFUSED),
        (told({}, 403), REFUSED),
        (told({"token": "not this one"}), REFUSED),
        (told({"errors": [{"message": "on fire"}]}, 500), "on fire"),
        (told({}), "no token service"),
        (Reply(200, b"<html>"), "no token service"),
        (Reply(chunks=iter([b"x" * 1_000_000] * 40)), "token service.* 4,194,304 bytes"),
        (told({"token": "a\nHost: elsewhere"}), "does not let"),
        (Reply(cut_after=0, headers={"Content-Length": "9"}), "no connection to 'localhost"),
    ],
)
def test_a_token_service_that_fails_or_refuses(reply: Reply, fact: str) -> None:
    with (
        guarded(reply) as (registry, service),
        pytest.raises(RegistryError, match=fact) as caught,
    ):
        client(registry).tags("shop/web")
    assert f"'{registry.address}/shop/web': " in str(caught.value)
    assert "horse" not in str(caught.value)
    assert (len(registry.seen) <= 2, len(service.seen)) == (True, 1)


# --- where a password never goes


@pytest.mark.parametrize("stored", [Reply(200, BLOB), challenge(BASIC)])
def test_a_storage_host_does_not_see_it_even_if_it_asks(stored: Reply) -> None:
    def answer(seen: Seen) -> Reply:
        place = f"http://{storage.address}/v2/shop/web/blobs/x"
        return sent_on(place) if seen.authorization == LEARNER.basic else challenge(BASIC)

    refused = pytest.raises(RegistryError) if stored.status == 401 else contextlib.nullcontext()
    with serving(stored) as storage, serving(answer) as served, refused:
        assert client(served).read_blob("shop/web", digest_of(BLOB)) == BLOB
    seen = [(seen.path, seen.authorization) for seen in storage.seen]
    assert seen == [("/v2/shop/web/blobs/x", None)]


def test_an_upload_to_another_host_does_not_carry_it() -> None:
    def answer(seen: Seen) -> Reply:
        place = {"Location": f"http://{other.address}/v2/shop/web/blobs/uploads/1"}
        return Reply(202, b"", place) if seen.authorization else challenge(BASIC)

    with serving(Reply(202, b"", {"Location": "/x"})) as other, serving(answer) as registry:
        client(registry).upload_blob("shop/web", [BLOB])
    assert {seen.authorization for seen in other.seen} == {None}


def test_a_token_service_that_sends_on_does_not_pass_it_on() -> None:
    with (
        serving(told({"token": "abc"})) as elsewhere,
        guarded(sent_on(f"http://{elsewhere.address}/token")) as (registry, _),
    ):
        with pytest.raises(RegistryError, match="307"):
            client(registry).tags("shop/web")
        assert elsewhere.seen == []
        assert client(registry, None).tags("shop/web") == ["1"]


def internet(monkeypatch: pytest.MonkeyPatch, header: str) -> list[requests.PreparedRequest]:
    """Make up hosts that want a login, but for those with tokens; return what comes to them."""
    sent: list[requests.PreparedRequest] = []

    def send(adapter: HTTPAdapter, request: requests.PreparedRequest, **_: object) -> object:
        sent.append(request)
        path = urlsplit(str(request.url)).path
        reply = told({"token": "abc"}) if path == "/token" else challenge(header)
        raw = urllib3.HTTPResponse(
            io.BytesIO(reply.body), reply.headers, reply.status, preload_content=False
        )
        return adapter.build_response(request, raw)

    monkeypatch.setattr(HTTPAdapter, "send", send)
    return sent


@pytest.mark.parametrize(
    ("address", "secure", "header", "sends"),
    [
        ("r.test", True, BASIC, True),
        ("r.test", False, BASIC, False),
        ("127.0.0.1:5", False, BASIC, True),
        ("r.test", True, 'Bearer realm="https://auth.test/token"', True),
        ("r.test", True, 'Bearer realm="http://auth.test/token"', False),
        ("r.test", False, 'Bearer realm="https://auth.test/token"', False),
        ("r.test", True, 'Bearer realm="http://127.0.0.1:5/token"', False),
        ("127.0.0.1:5", False, 'Bearer realm="http://auth.test/token"', False),
        ("127.0.0.1:5", False, 'Bearer realm="https://auth.test/token"', True),
    ],
)
@pytest.mark.parametrize("known", [LEARNER, TOKEN])
def test_no_password_over_plain_http_but_on_this_machine(
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    secure: bool,
    header: str,
    sends: bool,
    known: Credentials,
) -> None:
    sent = internet(monkeypatch, header)
    with pytest.raises(RegistryError):
        Registry(address, secure=secure, credentials=lambda _: known).ping()
    secrets = (LEARNER.basic, "correct+horse")
    seen = [f"{one.headers.get('Authorization')} {one.url} {one.body}" for one in sent]
    shown = [text for text in seen if any(secret in text for secret in secrets)]
    assert bool(shown) is (sends and not (known.identity_token and "Basic" in header))


def test_netrc_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine r.test login other password one\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    sent = internet(monkeypatch, BASIC)
    with pytest.raises(RegistryError):
        Registry("r.test", credentials=lambda _: None).ping()
    assert [one.headers.get("Authorization") for one in sent] == [None]
