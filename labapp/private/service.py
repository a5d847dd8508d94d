"""The token service: it opens the private registry to accounts, and keeps a log of what it decided.

Whoever asks for a token says what for; the answer is a signed token for as much of it as the
account may do, which may be nothing. The registry itself never sees a password. The service is a
thread of the process that started it, a notebook's kernel say, and ends with it.

Source: CNCF Distribution, "Token Authentication Specification", "Token Scope Documentation" and
"Token Authentication Implementation" (the claims of the JSON web token).
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import ssl
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import requests

from labapp.errors import RegistryError
from labapp.machine.ports import free_port, is_listening
from labapp.private.accounts import ANONYMOUS, Accounts
from labapp.state import State

if TYPE_CHECKING:
    from labapp.private.authority import Issued

ISSUER = "the lab's token service"
SERVICE = "the lab's private registry"
SECONDS = 300
"""How long a token is valid."""

_PLACE = "private/service"
"""Where the state keeps ``host``, ``port`` and ``tls`` of the service."""

_TYPE = r"[a-z0-9]+(?:\([a-z0-9]+\))?"
_NAME = r"(?:[A-Za-z0-9.-]+(?::[0-9]+)?/)?[a-z0-9._/-]+"
_SCOPE = re.compile(rf"({_TYPE}):({_NAME}):([a-z*]*(?:,[a-z*]+)*)")


@dataclass(frozen=True)
class Scope:
    """What is asked for, or granted: actions on one resource, ``repository`` ``shop/web`` say."""

    type: str
    name: str
    actions: tuple[str, ...]

    def granted(self, allowed: Iterable[str]) -> Scope:
        """Return the scope with those of its actions that are allowed."""
        held = set(allowed)
        return Scope(self.type, self.name, tuple(one for one in self.actions if one in held))


def parse_scopes(texts: Iterable[str]) -> list[Scope]:
    """Read scopes, each ``repository:shop/web:pull,push``; ValueError if one isn't of that form."""
    found = []
    for text in " ".join(texts).split():
        match = _SCOPE.fullmatch(text)
        if match is None:
            raise ValueError(f"the scope {text[:120]!r} is not of the form 'type:name:actions'")
        actions = tuple(dict.fromkeys(action for action in match[3].split(",") if action))
        found.append(Scope(match[1], match[2], actions))
    return found


def sign(issued: Issued, account: str, access: Iterable[Scope], *, seconds: int = SECONDS) -> str:
    """Return a token for an account, signed by the key whose certificate the registry was given.

    With ``seconds`` below 0, it has expired already.
    """
    # Slow to import, and a quick 'status' signs nothing.
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding
    from joserfc import jwt
    from joserfc.jwk import ECKey

    certificate = x509.load_pem_x509_certificate(issued.certificate.read_bytes())
    chain = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode("ascii")]
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": SERVICE,
        "sub": account,
        "iat": now,
        "nbf": min(now, now + seconds) - 10,
        "exp": now + seconds,
        "jti": secrets.token_hex(8),
        "access": [asdict(one) for one in access],
    }
    # The registry verifies with the key in the chain, after it has found whom to trust for it.
    header = {"typ": "JWT", "alg": "ES256", "x5c": chain}
    key = ECKey.import_key(issued.key.read_bytes())
    return jwt.encode(header, claims, key, algorithms=["ES256"])


@dataclass(frozen=True)
class Decision:
    """One decision of the token service: who asked for what, and what the token opens.

    The account is empty for who does not log in, the repository for a login alone; actions have
    commas between them. ``why`` says in words why not all was granted; ``status`` is HTTP's,
    ``time`` ISO 8601, UTC.
    """

    account: str
    repository: str = ""
    asked: str = ""
    granted: str = ""
    status: int = 200
    why: str = ""
    time: str = ""


def decisions(state: State) -> list[Decision]:
    """Return what the token service has decided, oldest first; half a line is left out."""
    file = _log(state)
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            found.append(Decision(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def _log(state: State) -> Path:
    return state.path("private", "decisions.log")


class _Refused(Exception):
    def __init__(self, status: int, cause: str) -> None:
        super().__init__(cause)
        self.status = status


class _Service(ThreadingHTTPServer):
    """The server of one lab; each request has a thread of its own."""

    daemon_threads = True

    def __init__(self, state: State, place: tuple[str, int], signer: Issued, made: bytes) -> None:
        super().__init__(place, _Handler)
        self.state = state
        self.accounts = Accounts(state)
        self.signer = signer
        self.made = made

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that hung up."""

    def token(self, account: str, password: str, query: dict[str, list[str]]) -> dict[str, Any]:
        """Return the answer to a request for a token."""
        if query.get("service") != [SERVICE]:
            raise _Refused(400, f"this service gives tokens for {SERVICE!r} only")
        try:
            scopes = parse_scopes(query.get("scope", ()))
        except ValueError as error:
            self.note(Decision(account, status=400, why=str(error)))
            raise _Refused(400, str(error)) from error
        if account != ANONYMOUS and not self.accounts.verify(account, password):
            why = "there is no such account, or its password is another"
            for scope in scopes or [Scope("", "", ())]:
                asked = ",".join(scope.actions)
                self.note(Decision(account, scope.name, asked, status=401, why=why))
            raise _Refused(401, why)
        granted = [scope.granted(self._allowed(account, scope)) for scope in scopes]
        for scope, given in zip(scopes, granted, strict=True):
            missing = [action for action in scope.actions if action not in given.actions]
            why = f"it has no right to {' and '.join(missing)} there" if missing else ""
            words = ",".join(scope.actions), ",".join(given.actions)
            self.note(Decision(account, scope.name, *words, why=why))
        if not scopes and account != ANONYMOUS:
            self.note(Decision(account, why="a login, nothing else was asked for"))
        token = sign(self.signer, account, [one for one in granted if one.actions])
        now = datetime.now(UTC).isoformat()
        return {"token": token, "access_token": token, "expires_in": SECONDS, "issued_at": now}

    def _allowed(self, account: str, scope: Scope) -> frozenset[str]:
        if scope.type == "repository":
            return self.accounts.allowed(account, scope.name)
        lists = (scope.type, scope.name) == ("registry", "catalog")
        return frozenset("*" if lists and self.accounts.may_list(account) else "")

    def note(self, decision: Decision) -> None:
        """Add a decision to the log; its time is now."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({**asdict(decision), "time": now}) + "\n"
        with _log(self.state).open("a", encoding="utf-8") as log:
            log.write(line)


class _Handler(BaseHTTPRequestHandler):
    server: _Service
    timeout = 10

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        try:
            if not self.server.state.folder.exists():  # reset; whoever writes makes it again
                raise _Refused(503, "this lab is no more")
            if url.path == "/alive":
                answer = {"lab": self.server.state.lab_id}
            elif url.path == "/token":
                answer = self.server.token(*self._login(), parse_qs(url.query))
            else:
                raise _Refused(404, "there is nothing here but '/token'")
            self._answer(200, answer)
        except _Refused as refused:
            code = {400: "UNSUPPORTED", 401: "UNAUTHORIZED"}.get(refused.status, "UNKNOWN")
            # As registries write errors, for `docker` to show (OCI, "Error Codes").
            errors = {"errors": [{"code": code, "message": str(refused)}]}
            self._answer(refused.status, errors)

    def do_POST(self) -> None:
        # A client that tries OAuth2 first, as containerd does, then asks by GET.
        self._answer(405, {"errors": [{"code": "UNSUPPORTED", "message": "ask by GET"}]})

    def _login(self) -> tuple[str, str]:
        """Return name and password of the request (RFC 7617); the anonymous account without."""
        header = self.headers.get("Authorization", "")
        if not header:
            return ANONYMOUS, ""
        scheme, _, encoded = header.partition(" ")
        try:
            pair = base64.b64decode(encoded, validate=True).decode()
        except ValueError:
            pair = ""
        name, colon, password = pair.partition(":")
        if scheme.lower() != "basic" or not colon or not name:
            raise _Refused(400, "the login is not of the form 'Basic base64(name:password)'")
        return name, password

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response_only(status)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="the accounts of the lab"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on standard error: decisions have a log of their own."""


_running: dict[Path, _Service] = {}
"""The services of this process, by the folder of their lab."""


def find(state: State) -> str | None:
    """Return the address that gives tokens, if this lab's service answers there."""
    place = state.read(_PLACE)
    if not place:
        return None
    url = f"{'https' if place['tls'] else 'http'}://{place['host']}:{place['port']}"
    try:
        with requests.Session() as session:
            session.trust_env = False  # an address of this machine: no proxy
            session.verify = str(state.folder / "private" / "authority.pem")
            if session.get(f"{url}/alive", timeout=5).json() == {"lab": state.lab_id}:
                return f"{url}/token"
    except (requests.RequestException, ValueError, OSError):
        pass
    return None


def start(state: State, *, host: str, signer: Issued, server: Issued | None) -> str:
    """Make the token service run and answer, and return the address that gives tokens.

    It signs with the key of ``signer``, and speaks TLS with the certificate of ``server``, if there
    is one. A service that answers is left alone, in whatever process it runs.
    """
    place = state.read(_PLACE)
    wanted = {"host": host, "tls": server is not None}
    same = {"host": place.get("host"), "tls": place.get("tls")} == wanted
    mine = _running.get(state.folder)
    made = b"".join(one.certificate.read_bytes() for one in (signer, server) if one)
    stale = mine is not None and mine.made != made
    if same and not stale and (found := find(state)):
        return found
    stop(state)
    port = place.get("port") if same else None
    if port is None or is_listening(port, host=host):
        port = free_port(host=host)
    try:
        service = _Service(state, (host, port), signer, made)
    except OSError as error:
        raise RegistryError(
            f"starting the token service at '{host}:{port}': {error.strerror or error}. "
            "Start the private registry again."
        ) from error
    if server is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(server.certificate, server.key)
        # Each thread shakes hands with its own client: one that is silent keeps nobody waiting.
        service.socket = context.wrap_socket(
            service.socket, server_side=True, do_handshake_on_connect=False
        )
    threading.Thread(target=service.serve_forever, args=(0.1,), daemon=True).start()
    _running[state.folder] = service
    state.write(_PLACE, {**wanted, "port": port})
    return f"{'https' if server else 'http'}://{host}:{port}/token"


def stop(state: State) -> None:
    """End the token service, if it is one of this process."""
    if service := _running.pop(state.folder, None):
        service.shutdown()
        service.server_close()


def was_started(state: State) -> bool:
    """Tell whether this lab has ever had a token service."""
    return bool(state.read(_PLACE))
