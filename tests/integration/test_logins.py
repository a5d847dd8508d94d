"""Logging in for real: a Distribution registry with passwords, and one that wants tokens."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from labapp.engine import Engine
from labapp.errors import RegistryError
from labapp.manifests import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, Platform
from labapp.manifests.assembly import build_config, build_manifest
from labapp.registry import Registry
from labapp.registry.credentials import Credentials
from labapp.registry.server import CONFIG, PORT_INSIDE
from labapp.state import ROLE_LABEL, State
from labapp.system.ports import free_port

LEARNER = Credentials("learner", "correct horse")
HTPASSWD = "learner:$2b$04$ocSrMHbLMEH/mel/cf4Z4OrMqR9P1DD9ns.x5HmdthN24vEuLylkW"
"""The learner's password under bcrypt, as ``htpasswd -B`` writes it."""
ISSUER, SERVICE = "the test's token service", "the test's registry"


def archive(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


@contextmanager
def guarded(engine: Engine, state: State, auth: str, files: dict[str, bytes]) -> Iterator[str]:
    """Run the lab's registry image with a lock on its door; yields its address."""
    port = free_port()
    container = engine.client.containers.create(
        str(state.read("registry")["image"]),
        command=["serve", "/registry.yml"],
        name=f"labapp-logins-{uuid.uuid4().hex[:8]}",
        labels={**state.labels, ROLE_LABEL: "oneshot"},
        ports={PORT_INSIDE: ("127.0.0.1", port)},
    )
    try:
        config = CONFIG.read_text(encoding="utf-8") + auth
        container.put_archive("/", archive({"registry.yml": config.encode(), **files}))
        container.start()
        address = f"localhost:{port}"
        end = time.monotonic() + 20
        while True:
            try:
                Registry(address, credentials=nobody).ping()
            except RegistryError as error:
                if "login" in str(error) or "may not" in str(error):
                    break
                assert time.monotonic() < end, container.logs().decode()
                time.sleep(0.05)
            else:
                break  # a token for nothing in particular opens /v2/
        yield address
    finally:
        container.remove(force=True, v=True)


def nobody(address: str) -> None:
    """Nothing is kept for any registry."""


def learner(address: str) -> Credentials:
    return LEARNER


def put_image(registry: Registry, repository: str) -> str:
    layer, size = registry.upload_blob(repository, [b"a layer"])
    config = build_config(platform=Platform("linux", "amd64"), diff_ids=[layer])
    digest, length = registry.upload_blob(repository, [config])
    manifest = build_manifest(
        Descriptor(OCI_CONFIG, digest, length), [Descriptor(OCI_LAYER, layer, size)]
    )
    return registry.put_manifest(repository, "1", manifest, OCI_MANIFEST)


# --- a registry with passwords


@pytest.fixture(scope="module")
def with_passwords(engine: Engine, bench: object, state: State) -> Iterator[str]:
    auth = "\nauth:\n  htpasswd:\n    realm: a test\n    path: /htpasswd\n"
    with guarded(engine, state, auth, {"htpasswd": HTPASSWD.encode()}) as address:
        yield address


def test_name_and_password_open_it(with_passwords: str) -> None:
    registry = Registry(with_passwords, credentials=learner)
    digest = put_image(registry, "shop/private")
    assert registry.image(f"{with_passwords}/shop/private:1").digest == digest
    assert registry.repositories() == ["shop/private"]


def test_docker_login_is_enough(
    with_passwords: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    pair = base64.b64encode(b"learner:correct horse").decode()
    config = {"auths": {with_passwords: {"auth": pair}}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    Registry(with_passwords).ping()


@pytest.mark.parametrize(
    ("credentials", "words"),
    [
        (None, "docker login localhost:"),
        (Credentials("learner", "wrong"), "does not take the login of 'learner'"),
        (Credentials("stranger", "correct horse"), "the login of 'stranger'"),
    ],
)
def test_who_has_no_login_is_told(
    with_passwords: str, credentials: Credentials | None, words: str
) -> None:
    registry = Registry(with_passwords, credentials=lambda _: credentials)
    with pytest.raises(RegistryError, match=words):
        registry.tags("shop/private")


# --- a registry that wants tokens, and the service that gives them


@dataclass
class TokenService:
    """Gives everybody a token to pull ``shop/public``, and the learner one for ``shop``."""

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate
    address: str = ""
    seconds: int = 300
    asked: list[dict[str, list[str]]] = field(default_factory=list)

    def answer(self, query: dict[str, list[str]], authorization: str | None) -> tuple[int, object]:
        self.asked.append(query)
        if authorization not in (None, LEARNER.basic):
            return 401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong password"}]}
        return 200, {
            "token": self.token(query.get("scope", []), known=authorization is not None),
            "expires_in": self.seconds,
        }

    def token(self, scopes: list[str], *, known: bool) -> str:
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            allowed = {"pull"} if name == "shop/public" else set()
            if known and name.startswith("shop/"):
                allowed = {"pull", "push"}
            granted = sorted(allowed & set(actions.split(",")))
            access.append({"type": kind, "name": name, "actions": granted})
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": "learner" if known else "",
            "nbf": now - 10,
            "iat": now,
            "exp": now + self.seconds,
            "jti": uuid.uuid4().hex,
            "access": access,
        }
        der = self.certificate.public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        signed = ".".join(encoded(json.dumps(part).encode()) for part in (header, claims))
        signature = self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{encoded(signature)}"


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def tokens() -> Iterator[TokenService]:
    """The token service, listening."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "token service")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    service = TokenService(key, certificate)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            status, content = service.answer(query, self.headers.get("Authorization"))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.address = f"http://127.0.0.1:{server.server_address[1]}/token"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def with_tokens(engine: Engine, bench: object, state: State, tokens: TokenService) -> Iterator[str]:
    auth = (
        f"\nauth:\n  token:\n    realm: {tokens.address}\n    service: {json.dumps(SERVICE)}\n"
        f"    issuer: {json.dumps(ISSUER)}\n    rootcertbundle: /roots.pem\n"
    )
    pem = tokens.certificate.public_bytes(serialization.Encoding.PEM)
    with guarded(engine, state, auth, {"roots.pem": pem}) as address:
        for repository in ("shop/public", "shop/private"):
            put_image(Registry(address, credentials=learner), repository)
        yield address


@pytest.fixture(autouse=True)
def nothing_asked(tokens: TokenService) -> None:
    tokens.asked.clear()


def test_a_public_image_needs_a_token_but_no_login(with_tokens: str, tokens: TokenService) -> None:
    registry = Registry(with_tokens, credentials=nobody)
    image = registry.image(f"{with_tokens}/shop/public:1")
    assert registry.read_blob("shop/public", image.manifest.layers[0].digest) == b"a layer"
    # One token for manifest, config and layer.
    assert [ask["scope"] for ask in tokens.asked] == [["repository:shop/public:pull"]]
    assert [ask["service"] for ask in tokens.asked] == [[SERVICE]]
    assert "account" not in tokens.asked[0]


def test_reading_and_writing_have_a_token_each(with_tokens: str, tokens: TokenService) -> None:
    registry = Registry(with_tokens, credentials=learner)
    put_image(registry, "shop/more")
    registry.image(f"{with_tokens}/shop/more:1")
    scopes = {tuple(sorted(ask["scope"][0].split(":")[2].split(","))) for ask in tokens.asked}
    assert len(tokens.asked) == 2
    assert scopes == {("pull",), ("pull", "push")}
    assert tokens.asked[0]["account"] == ["learner"]


def test_a_token_of_the_past_is_replaced(
    with_tokens: str, tokens: TokenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(with_tokens, credentials=nobody)
    registry.tags("shop/public")
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + tokens.seconds)
    registry.tags("shop/public")
    assert len(tokens.asked) == 2


@pytest.mark.parametrize(
    ("credentials", "repository", "words"),
    [
        (None, "shop/private", "wants a login for it, or does not have it"),
        (Credentials("learner", "wrong"), "shop/private", "does not take the login of"),
        (LEARNER, "elsewhere/private", "'learner' may not do that at 'localhost"),
    ],
)
def test_a_token_without_the_right(
    with_tokens: str, credentials: Credentials | None, repository: str, words: str
) -> None:
    registry = Registry(with_tokens, credentials=lambda _: credentials)
    with pytest.raises(RegistryError, match=words) as caught:
        registry.manifest(repository, "1")
    assert repository in str(caught.value)
