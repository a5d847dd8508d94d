"""Who sees a password: docker's configuration, challenges and redirects, on real sockets."""

from __future__ import annotations

import base64
import json
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
import trustme

from labapp.errors import RegistryError, RegistryUnreachable
from labapp.manifests import digest_of
from labapp.registry import Registry
from labapp.registry.addresses import same_origin, url_of
from labapp.registry.credentials import Credentials, docker_credentials
from labapp.registry.logins import Logins, Signature
from labapp.registry.reader import RegistryReader
from labapp.system.ports import free_port

LEARNER = Credentials("learner", "correct horse")
BLOB = b"a layer"
TAGS = (200, {"Content-Type": "application/json"}, b'{"tags": ["1"]}')

Reply = tuple[int, Mapping[str, str], bytes]


@dataclass
class Seen:
    """A request that a server got."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")


@dataclass
class Server:
    """A server that says what a function says, and keeps what it was asked."""

    address: str
    answer: Callable[[Seen], Reply]
    seen: list[Seen] = field(default_factory=list)


@contextmanager
def serving(
    answer: Callable[[Seen], Reply], *, certificate: trustme.LeafCert | None = None
) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen = Seen(self.command, self.path, dict(self.headers), body)
            served.seen.append(seen)
            status, headers, content = served.answer(seen)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                for line in value.splitlines():  # a header may come several times
                    self.send_header(name, line)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = respond

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(tls)
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    served = Server(f"127.0.0.1:{server.server_address[1]}", answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def challenge(header: str) -> Reply:
    body = b'{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}'
    return 401, {"WWW-Authenticate": header, "Content-Type": "application/json"}, body


def token(content: object, status: int = 200) -> Reply:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


def bearer(address: str, scope: str = "repository:shop/web:pull") -> str:
    return f'Bearer realm="http://{address}/token",service="a, b",scope="{scope}"'


def learner(address: str) -> Credentials:
    return LEARNER


def nobody(address: str) -> None:
    return None


def guarded(seen: Seen, header: str, wanted: str) -> Reply:
    """A registry that lets one Authorization in."""
    return TAGS if seen.authorization == wanted else challenge(header)


# --- what docker keeps


def write_config(folder: Path, content: object) -> None:
    folder.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "config.json").write_text(text, encoding="utf-8")


def pair(name: str, password: str) -> str:
    return base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("config", "address", "expected"),
    [
        ({"auths": {"localhost:5": {"auth": pair("a", "b:c")}}}, "localhost:5", ("a", "b:c", "")),
        ({"auths": {"localhost:5": {"auth": pair("a", "b")}}}, "localhost:6", None),
        ({"auths": {"https://r.test/v1/": {"auth": pair("a", "b")}}}, "r.test", ("a", "b", "")),
        (
            {"auths": {"https://index.docker.io/v1/": {"auth": pair("a", "ü")}}},
            "docker.io",
            ("a", "ü", ""),
        ),
        ({"auths": {"r.test": {"identitytoken": "t"}}}, "r.test", ("", "", "t")),
        ({"auths": {"r.test": {}}}, "r.test", None),
        ({"auths": {}}, "r.test", None),
        ({}, "r.test", None),
    ],
)
def test_what_docker_login_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: object,
    address: str,
    expected: tuple[str, str, str] | None,
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    write_config(tmp_path, config)
    found = docker_credentials(address)
    assert (found and (found.username, found.password, found.identity_token)) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"Username": "a", "Secret": "b"}, Credentials("a", "b")),
        ({"Username": "<token>", "Secret": "t"}, Credentials("", "", "t")),
    ],
)
def test_a_helper_program_is_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: dict[str, str],
    expected: Credentials,
) -> None:
    helper = tmp_path / "docker-credential-labtest"
    script = f"#!/bin/sh\necho '{json.dumps(answer)}'\n"
    if sys.platform == "win32":
        helper, script = helper.with_suffix(".cmd"), f"@echo {json.dumps(answer)}\r\n"
    helper.write_text(script, encoding="utf-8")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    write_config(tmp_path, {"credsStore": "labtest"})
    assert docker_credentials("r.test") == expected


@pytest.mark.filterwarnings("ignore:.*not installed or not available")
@pytest.mark.parametrize(
    "config",
    [
        {"credsStore": "nosuch-helper"},
        {"auths": {"r.test": {"auth": "no base64!"}}},
        {"auths": {"r.test": 3}},
        [],
        "[3]",
    ],
)
def test_a_configuration_that_can_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: object
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    write_config(tmp_path, config)
    with pytest.raises(RegistryError, match=r"looking up the login for 'r\.test'") as caught:
        docker_credentials("r.test")
    assert "docker login r.test" in str(caught.value)


def test_a_broken_helper_keeps_nobody_from_public_images() -> None:
    def broken(address: str) -> Credentials:
        raise RegistryError("looking up the login: no keychain. Mend it.")

    with serving(lambda seen: token({"token": "public"})) as service:

        def answer(seen: Seen) -> Reply:
            if "private" in seen.path:
                return challenge(bearer(service.address))
            return guarded(seen, bearer(service.address), "Bearer public")

        with serving(answer) as registry:
            reader = RegistryReader(registry.address, credentials=broken)
            assert reader.tags("shop/web") == ["1"]
            with pytest.raises(RegistryError, match=r"Looking up the login: no keychain"):
                reader.tags("shop/private")


def test_a_password_is_not_shown() -> None:
    assert "horse" not in repr(LEARNER)
    assert "secret" not in repr(Credentials("", "", "secret"))


# --- a challenge


def test_nothing_is_sent_or_looked_up_before_it_is_asked_for() -> None:
    def unasked(address: str) -> Credentials:
        raise AssertionError("looked up")

    with serving(lambda seen: TAGS) as registry:
        assert RegistryReader(registry.address, credentials=unasked).tags("shop/web") == ["1"]
    assert registry.seen[0].authorization is None


def test_a_password_is_sent_once_it_is_asked_for_and_then_at_once() -> None:
    def answer(seen: Seen) -> Reply:
        return guarded(seen, 'Basic realm="Registry Realm"', LEARNER.basic)

    with serving(answer) as registry:
        reader = RegistryReader(registry.address, credentials=learner)
        assert reader.tags("shop/web") == ["1"]
        assert reader.tags("shop/web") == ["1"]
    assert [seen.authorization for seen in registry.seen] == [None, LEARNER.basic, LEARNER.basic]


def test_the_token_service_is_asked_as_the_specification_says() -> None:
    with serving(lambda seen: token({"access_token": "abc"})) as service:
        header = bearer(service.address, "repository:shop/web:pull,push repository:b:pull")
        with serving(lambda seen: guarded(seen, header, "Bearer abc")) as registry:
            RegistryReader(registry.address, credentials=learner).tags("shop/web")
    (asked,) = service.seen
    query = requests.compat.urlparse(asked.path).query
    fields = requests.compat.unquote(query).replace("+", " ").split("&")
    assert fields == [
        "service=a, b",
        "client_id=labapp",
        "scope=repository:shop/web:pull,push",
        "scope=repository:b:pull",
        "account=learner",
    ]
    assert asked.authorization == LEARNER.basic


def test_an_identity_token_is_exchanged() -> None:
    known = Credentials("", identity_token="long-lived")
    with (
        serving(lambda seen: token({"access_token": "abc"})) as service,
        serving(lambda seen: guarded(seen, bearer(service.address), "Bearer abc")) as registry,
    ):
        RegistryReader(registry.address, credentials=lambda _: known).tags("shop/web")
    (asked,) = service.seen
    assert (asked.method, asked.path, asked.authorization) == ("POST", "/token", None)
    assert b"grant_type=refresh_token&refresh_token=long-lived" in asked.body
    assert b"scope=repository%3Ashop%2Fweb%3Apull" in asked.body


def test_tokens_where_a_registry_offers_both() -> None:
    with serving(lambda seen: token({"token": "abc"})) as service:
        both = f'Basic realm="x"\n{bearer(service.address)}'
        with serving(lambda seen: guarded(seen, both, "Bearer abc")) as registry:
            assert RegistryReader(registry.address, credentials=nobody).tags("shop/web") == ["1"]


def test_several_threads_share_one_token() -> None:
    def slow(seen: Seen) -> Reply:
        time.sleep(0.05)
        return token({"token": "abc"})

    with (
        serving(slow) as service,
        serving(lambda seen: guarded(seen, bearer(service.address), "Bearer abc")) as registry,
        ThreadPoolExecutor(4) as threads,
    ):
        reader = RegistryReader(registry.address, credentials=nobody)
        assert list(threads.map(reader.tags, ["shop/web"] * 4)) == [["1"]] * 4
    assert len(service.seen) == 1


def test_a_request_is_repeated_once_only() -> None:
    with (
        serving(lambda seen: token({"token": f"t{len(service.seen)}"})) as service,
        serving(lambda seen: challenge(bearer(service.address))) as registry,
    ):
        reader = RegistryReader(registry.address, credentials=nobody)
        with pytest.raises(RegistryError, match="docker login"):
            reader.tags("shop/web")
        assert len(registry.seen) == 2
        assert len(service.seen) == 1


def test_an_upload_is_sent_again_with_its_body() -> None:
    def answer(seen: Seen) -> Reply:
        if seen.authorization is None:
            return challenge('Basic realm="x"')
        place = {"Location": "/v2/shop/web/blobs/uploads/1"}
        return {"POST": 202, "PATCH": 202, "PUT": 201}[seen.method], place, b""

    with serving(answer) as registry:
        Registry(registry.address, credentials=learner).upload_blob("shop/web", [BLOB])
    bodies = [seen.body for seen in registry.seen if seen.method == "PATCH"]
    assert bodies == [BLOB]
    assert [seen.authorization is None for seen in registry.seen] == [True, False, False, False]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (token({"errors": [{"message": "no such user"}]}, 401), "does not take the login of"),
        (token({}, 403), "does not take the login of"),
        (token({"errors": [{"message": "on fire"}]}, 500), r"token service '.*' .*failed \(on fi"),
        (token({}), "is no token service: its field 'access_token' is missing"),
        (token([]), "is no token service"),
        ((200, {}, b"<html>"), "is no token service: it is not JSON"),
        (token({"token": "a\r\nHost: elsewhere"}), "characters that no token has"),
        (token({"token": "a", "expires_in": "soon"}), "may not do that"),
        (token({"token": "a", "expires_in": -5}), "may not do that"),
    ],
)
def test_a_token_service_that_fails(reply: Reply, words: str) -> None:
    with (
        serving(lambda seen: reply) as service,
        serving(lambda seen: challenge(bearer(service.address))) as registry,
    ):
        reader = RegistryReader(registry.address, credentials=learner)
        with pytest.raises(RegistryError, match=words) as caught:
            reader.tags("shop/web")
    assert str(caught.value).startswith(f"listing the tags of '{registry.address}/shop/web': ")
    assert "horse" not in str(caught.value)


def test_a_token_service_that_is_down() -> None:
    with serving(lambda seen: challenge(bearer(f"127.0.0.1:{port}"))) as registry:
        port = free_port()
        reader = RegistryReader(registry.address, credentials=learner)
        with pytest.raises(RegistryUnreachable, match=r"asking the token service .* refused"):
            reader.tags("shop/web")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("Negotiate", "wants a login"),
        ("", "wants a login"),
        ("Bearer", "does not name a token service"),
        ('Bearer service="x"', "does not name a token service"),
        ('Bearer realm="ftp://127.0.0.1/x"', "does not name a token service"),
        ('Bearer realm="http://[::1/x"', "does not name a token service"),
        ('Basic realm="x", , =, "', "does not take the login of 'learner'"),
    ],
)
def test_a_challenge_that_can_not_be_met(header: str, words: str) -> None:
    with serving(lambda seen: challenge(header)) as registry:
        reader = RegistryReader(registry.address, credentials=learner)
        with pytest.raises(RegistryError, match=words):
            reader.tags("shop/web")


def test_a_registry_and_a_token_service_with_certificates_of_their_own(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    roots = tmp_path / "roots.pem"
    authority.cert_pem.write_to_path(str(roots))

    def answer(seen: Seen) -> Reply:
        header = bearer(service.address).replace("http:", "https:")
        return guarded(seen, header, "Bearer abc")

    with (
        serving(lambda seen: token({"token": "abc"}), certificate=certificate) as service,
        serving(answer, certificate=certificate) as registry,
    ):
        trusting = RegistryReader(
            registry.address, secure=True, credentials=learner, certificates=roots
        )
        assert trusting.tags("shop/web") == ["1"]
        assert service.seen[0].authorization == LEARNER.basic
        with pytest.raises(RegistryUnreachable, match="not from an authority that is trusted here"):
            RegistryReader(registry.address, secure=True, credentials=learner).tags("shop/web")


# --- where a password never goes


def test_a_storage_host_does_not_see_it() -> None:
    with serving(lambda seen: (200, {}, BLOB)) as storage:

        def answer(seen: Seen) -> Reply:
            if seen.authorization != LEARNER.basic:
                return challenge('Basic realm="x"')
            return 307, {"Location": f"http://{storage.address}/bucket/blob"}, b""

        with serving(answer) as registry:
            reader = RegistryReader(registry.address, credentials=learner)
            assert reader.read_blob("shop/web", digest_of(BLOB)) == BLOB
    (asked,) = storage.seen
    assert (asked.path, asked.authorization) == ("/bucket/blob", None)


def test_a_storage_host_that_asks_for_it_does_not_get_it() -> None:
    with serving(lambda seen: challenge('Basic realm="x"')) as storage:
        place = {"Location": f"http://{storage.address}/v2/shop/web/blobs/x"}
        with serving(lambda seen: (307, place, b"")) as registry:
            reader = RegistryReader(registry.address, credentials=learner)
            with pytest.raises(RegistryError, match="wants a login"):
                reader.read_blob("shop/web", digest_of(BLOB))
    assert [seen.authorization for seen in storage.seen] == [None]


def test_an_upload_to_another_host_does_not_carry_it() -> None:
    with serving(lambda seen: (202, {"Location": "/x"}, b"")) as other:

        def answer(seen: Seen) -> Reply:
            if seen.authorization is None:
                return challenge('Basic realm="x"')
            return 202, {"Location": f"http://{other.address}/v2/shop/web/blobs/uploads/1"}, b""

        with serving(answer) as registry, pytest.raises(RegistryError):
            Registry(registry.address, credentials=learner).upload_blob("shop/web", [BLOB])
    assert {seen.authorization for seen in other.seen} == {None}


def test_a_token_service_that_sends_on_does_not_pass_it_on() -> None:
    with serving(lambda seen: token({"token": "abc"})) as elsewhere:
        place = {"Location": f"http://{elsewhere.address}/token"}
        with (
            serving(lambda seen: (307, place, b"")) as service,
            serving(lambda seen: guarded(seen, bearer(service.address), "Bearer abc")) as registry,
        ):
            with pytest.raises(RegistryError, match="status 307"):
                RegistryReader(registry.address, credentials=learner).tags("shop/web")
            assert elsewhere.seen == []
            anonymous = RegistryReader(registry.address, credentials=nobody)
            assert anonymous.tags("shop/web") == ["1"]


def test_netrc_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password one\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    with serving(lambda seen: TAGS) as registry:
        reader = RegistryReader(registry.address, credentials=nobody)
        reader._http._session.trust_env = True  # as for a registry elsewhere
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        reader.tags("shop/web")
    assert registry.seen[0].authorization is None


@pytest.mark.parametrize(
    ("url", "header", "sends"),
    [
        ("https://r.test", 'Basic realm="x"', True),
        ("http://r.test", 'Basic realm="x"', False),
        ("http://127.0.0.1:5", 'Basic realm="x"', True),
        ("https://r.test", 'Bearer realm="http://auth.test/token"', False),
        ("http://r.test", 'Bearer realm="https://auth.test/token"', False),
        ("https://r.test", 'Bearer realm="http://127.0.0.1:5/token"', False),
        ("http://127.0.0.1:5", 'Bearer realm="http://auth.test/token"', False),
        ("http://127.0.0.1:5", 'Bearer realm="https://auth.test/token"', True),
    ],
)
def test_no_password_over_plain_http_but_on_this_machine(
    url: str, header: str, sends: bool
) -> None:
    """What would be sent is looked at before it is: these hosts don't exist."""
    sent: list[Credentials | None] = []

    class Watched(Logins):
        def _ask_service(self, realm, fields, known, doing):  # type: ignore[no-untyped-def]
            sent.append(known)
            return 200, b'{"token": "abc"}'

    logins = Watched("r.test", url, credentials=learner)
    refused = requests.Response()
    refused.url = f"{url}/v2/"
    refused.raw = type("Raw", (), {"headers": Headers(header)})()
    logins.renew("GET", f"{url}/v2/", refused, sent=Signature(), doing="asking")
    if "Basic" in header:
        sent.append(LEARNER if logins.signature("GET", f"{url}/v2/").value else None)
    assert sent == [LEARNER if sends else None]
    assert ("over plain HTTP" in logins.advice) is not sends


class Headers:
    def __init__(self, header: str) -> None:
        self.header = header

    def getlist(self, name: str) -> list[str]:
        return [self.header] if name == "WWW-Authenticate" else []


# --- addresses


@pytest.mark.parametrize(
    ("address", "secure", "expected"),
    [
        ("localhost:41233", None, "http://127.0.0.1:41233"),
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
