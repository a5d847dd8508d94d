"""The token service: it opens the private registry to accounts, and keeps a log of what it decided.

Whoever asks for a token says what for, and gets one for as much of it as the account may do. The
registry itself never sees a password. The service is a thread of the process that started it, a
notebook's kernel say, and ends with it.

Source: CNCF Distribution, "Token Authentication Specification", "Token Scope Documentation" and
"Token Authentication Implementation" (the claims of the JSON web token).
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import requests

from labapp.machine.ports import LOOPBACK, ask
from labapp.private.accounts import ANONYMOUS, Accounts
from labapp.state import State

ISSUER = "the lab's token service"
SERVICE = "the lab's private registry"
SECONDS = 300
"""How long a token is valid."""
AT_ONCE = 128
"""How many clients are served at once; who comes while as many are there is cut off."""

_PLACE = "private/service"
"""Where the state keeps the address that gives tokens, ``realm``."""
_LOG = ("private", "decisions.log")


@dataclass(frozen=True)
class Scope:
    """What is asked for, or granted: actions on one resource, ``repository`` ``shop/web`` say."""

    type: str
    name: str
    actions: tuple[str, ...]


def parse_scopes(texts: Iterable[str]) -> list[Scope]:
    """Read scopes, each ``repository:shop/web:pull,push``; what is none names no resource."""
    found = []
    for text in " ".join(texts).split():
        type, _, rest = text.partition(":")
        name, _, actions = rest.rpartition(":")  # a name may begin with a host and its port
        found.append(Scope(type, name, tuple(dict.fromkeys(filter(None, actions.split(","))))))
    return found


def sign(signer: Path, account: str, access: Iterable[Scope], *, seconds: int = SECONDS) -> str:
    """Return a token for an account, signed by a certificate's key, which lies beside it."""
    # Slow to import, and a quick 'status' signs nothing.
    from joserfc import jwt
    from joserfc.jwk import ECKey

    # PEM is a certificate in DER as base64, between two lines that say so.
    _, *encoded, _ = signer.read_text(encoding="ascii").splitlines()
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
    header = {"typ": "JWT", "alg": "ES256", "x5c": ["".join(encoded)]}
    key = ECKey.import_key(signer.with_suffix(".key").read_bytes())
    return jwt.encode(header, claims, key, algorithms=["ES256"])


@dataclass(frozen=True)
class Decision:
    """One decision: the account is empty for who does not log in, the repository for a login."""

    time: str
    account: str
    repository: str
    asked: str
    granted: str
    status: int
    why: str


def decisions(state: State) -> list[Decision]:
    """Return what the token service has decided, oldest first; half a line is left out."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in state.path(*_LOG).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                found.append(Decision(**json.loads(line)))
    return found


class _Service(ThreadingHTTPServer):
    daemon_threads = True
    # Whatever a client sends, nothing of it is printed below a learner's cell.
    handle_error = staticmethod(lambda *_: None)  # type: ignore[assignment]

    def __init__(self, state: State, signer: Path, place: tuple[str, int] = (LOOPBACK, 0)) -> None:
        super().__init__(place, _Handler)
        self.state = state
        self.accounts = Accounts(state)
        self.signer = signer
        self.seconds = 0.0
        """What a wrong password costs; in that time, nobody at that address can try that name."""
        self.turns: dict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)
        self.places = threading.BoundedSemaphore(AT_ONCE)

    def verify_request(self, *_: object) -> bool:
        """Tell whether there is a place for one more client, and take it."""
        return self.places.acquire(blocking=False)

    def process_request_thread(self, *client: Any) -> None:
        """Serve a client, then give its place to the next."""
        try:
            super().process_request_thread(*client)
        finally:
            self.places.release()

    def token(self, account: str, password: str, asked: list[str]) -> tuple[int, dict[str, Any]]:
        """Return the answer to a request for a token: the status, and what to tell."""
        scopes = parse_scopes(asked)
        login = Scope("", "", ())
        if account != ANONYMOUS and not self.accounts.verify(account, password):
            why = "there is no such account, or its password is another"
            for scope in scopes or [login]:
                self.note(account, scope, why, code=401)
            # As registries write errors, for `docker` to show (OCI, "Error Codes").
            return 401, {"errors": [{"code": "UNAUTHORIZED", "message": why}]}
        access = []
        for scope in scopes:
            held = self._held(account, scope)
            granted = tuple(action for action in scope.actions if action in held)
            missing = " and ".join(action for action in scope.actions if action not in held)
            why = f"it has no right to {missing} there" if missing else ""
            self.note(account, scope, why, ",".join(granted))
            if granted:
                access.append(Scope(scope.type, scope.name, granted))
        if not scopes and account != ANONYMOUS:
            self.note(account, login, "a login, nothing else was asked for")
        return 200, {"token": sign(self.signer, account, access), "expires_in": SECONDS}

    def _held(self, account: str, scope: Scope) -> frozenset[str]:
        if scope.type == "repository":
            return self.accounts.allowed(account, scope.name)
        # Who may pull from everywhere may list what there is.
        catalog = (scope.type, scope.name) == ("registry", "catalog")
        return frozenset("*" if catalog and "pull" in self.accounts.allowed(account, "*") else "")

    def note(self, account: str, scope: Scope, why: str, given: str = "", code: int = 200) -> None:
        """Add a decision to the log."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        asked = ",".join(scope.actions)
        decision = Decision(now, account, scope.name, asked, given, code, why)
        with self.state.path(*_LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(asdict(decision)) + "\n")


class _Handler(BaseHTTPRequestHandler):
    server: _Service
    timeout = 10
    log_message = staticmethod(lambda *_: None)  # type: ignore[assignment]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/alive":
            self._answer(200, {"lab": self.server.state.lab_id})
            return
        # Name and password (RFC 7617); without them, it is the anonymous account.
        login = self.headers.get("Authorization", "").partition(" ")[2]
        name, _, password = base64.b64decode(login).decode().partition(":")
        asked = parse_qs(url.query).get("scope", [])
        with self.server.turns[name, self.client_address[0]]:
            status, content = self.server.token(name, password, asked)
            if status != 200:
                time.sleep(self.server.seconds)
        self._answer(status, content)

    def do_POST(self) -> None:
        # A client that tries OAuth2 first, as containerd does, then asks by GET.
        self._answer(405, {})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response_only(status)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="the accounts of the lab"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


_running: dict[Path, _Service] = {}
"""The services of this process, by the folder of their lab."""


def find(state: State) -> str | None:
    """Return the address that gives tokens, if this lab's service answers there."""
    realm: str = state.read(_PLACE).get("realm", "")
    authority = state.folder / "private" / (urlsplit(realm).hostname or "") / "authority.pem"
    with contextlib.suppress(requests.RequestException, OSError):
        answer = ask(urljoin(realm, "/alive"), seconds=5, authority=authority)
        return realm if answer.json() == {"lab": state.lab_id} else None
    return None


def start(state: State, signer: Path) -> str:
    """Make the token service run; return its address. One that answers is left alone, anywhere.

    It speaks without TLS, over the loopback interface, which no other machine can listen to:
    Docker's containerd image store trusts the lab's authority for the registry alone, not for its
    token service (moby issue 52361).
    """
    if found := find(state):
        return found
    stop(state)
    service = _running[state.folder] = _Service(state, signer)
    threading.Thread(target=service.serve_forever, args=(0.1,), daemon=True).start()
    realm = f"http://{LOOPBACK}:{service.server_port}/token"
    state.write(_PLACE, {"realm": realm})
    return realm


def serve(state: State, folder: Path, *, place: tuple[str, int], realm: str) -> None:
    """Run the token service for good, with TLS; other processes of this lab find it at ``realm``.

    ``folder`` is one that :func:`labapp.private.registry.make_certificates` has filled.
    """
    service = _Service(state, folder / "tokens.pem", place)
    service.seconds = 1.0
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "server.pem", folder / "server.key")
    # Each client's own thread shakes hands, so that none keeps the others waiting.
    service.socket = tls.wrap_socket(
        service.socket, server_side=True, do_handshake_on_connect=False
    )
    state.write(_PLACE, {"realm": realm})
    service.serve_forever()


def stop(state: State) -> None:
    """End the token service, if it is one of this process."""
    if service := _running.pop(state.folder, None):
        service.shutdown()
        service.server_close()
