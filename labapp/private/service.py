"""The token service: a process of its own that opens the private registry to accounts.

Run as ``python -m labapp.private.service STATE_FOLDER``; :mod:`labapp.private.process` does that.
Whoever asks for a token says what for; the answer is a signed token for as much of it as the
account may do, which may be nothing. The registry itself never sees a password.

Source: CNCF Distribution, "Token Authentication Specification": the parameters of the request and
the fields of the answer.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import ssl
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from tornado.httpserver import HTTPServer
from tornado.ioloop import PeriodicCallback
from tornado.web import Application, HTTPError, RequestHandler

from labapp.private import decisions
from labapp.private.accounts import ANONYMOUS, Accounts
from labapp.private.decisions import Decision
from labapp.private.process import FOLDER, RUNNING, SETTINGS, certificates
from labapp.private.tokens import SECONDS, SERVICE, Scope, Signer, parse_scopes
from labapp.state import State

WATCH_MILLISECONDS = 5000.0

_LARGEST = 64 * 1024
"""The longest request that is read, in bytes."""


class _Handler(RequestHandler):
    """What all answers have in common: JSON, and errors as a registry writes them."""

    state: State
    accounts: Accounts
    signer: Signer
    nonce: str
    cause: str = ""

    def refuse(self, status: int, cause: str) -> NoReturn:
        """End the request with an error."""
        self.cause = cause
        raise HTTPError(status)

    def initialize(self, **parts: Any) -> None:
        """Take over what the application has for its handlers."""
        self.__dict__.update(parts)

    def set_default_headers(self) -> None:
        """Say nothing about the program, and let nobody keep an answer."""
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")

    def write_error(self, status_code: int, **details: Any) -> None:
        """Write an error the way registries do, for ``docker`` to show (OCI, "Error Codes")."""
        if status_code == 401:
            self.set_header("WWW-Authenticate", 'Basic realm="the accounts of the lab"')
        code = {400: "UNSUPPORTED", 401: "UNAUTHORIZED"}.get(status_code, "UNKNOWN")
        self.finish({"errors": [{"code": code, "message": self.cause or self._reason}]})


class _Alive(_Handler):
    def get(self) -> None:
        """Say which service this is."""
        self.finish({"nonce": self.nonce})


class _Token(_Handler):
    async def get(self) -> None:
        """Answer with a token for what the account may do of what is asked for."""
        account, password = self._credentials()
        scopes = self._scopes(account)
        if account != ANONYMOUS:
            # Off the loop: bcrypt is slow on purpose, and others ask meanwhile.
            loop = asyncio.get_running_loop()
            same = await loop.run_in_executor(None, self.accounts.verify, account, password)
            if not same:
                self._refuse(account, scopes)
        granted = [scope.granted(self._allowed(account, scope)) for scope in scopes]
        for asked, given in zip(scopes, granted, strict=True):
            missing = [action for action in asked.actions if action not in given.actions]
            why = f"it has no right to {' and '.join(missing)} there" if missing else ""
            self._note(account, asked, ",".join(given.actions), 200, why)
        if not scopes and account != ANONYMOUS:
            self._note(account, None, "", 200, "a login, nothing else was asked for")
        seconds = self.state.read(SETTINGS).get("seconds", SECONDS)
        token = self.signer.sign(account, [one for one in granted if one.actions], seconds=seconds)
        self.finish(
            {
                "token": token.text,
                "access_token": token.text,
                "expires_in": int(token.seconds),
                "issued_at": datetime.fromtimestamp(token.issued, UTC).isoformat(),
            }
        )

    def _credentials(self) -> tuple[str, str]:
        """Return name and password of the request (RFC 7617); the anonymous account without."""
        header = self.request.headers.get("Authorization", "")
        if not header:
            return ANONYMOUS, ""
        scheme, _, encoded = header.partition(" ")
        try:
            pair = base64.b64decode(encoded, validate=True).decode()
        except ValueError:
            pair = ""
        name, colon, password = pair.partition(":")
        if scheme.lower() != "basic" or not colon or not name:
            self.refuse(400, "the login is not of the form 'Basic base64(name:password)'")
        return name, password

    def _scopes(self, account: str) -> list[Scope]:
        if self.get_query_argument("service", "") != SERVICE:
            self.refuse(400, f"this service gives tokens for {SERVICE!r} only")
        try:
            return parse_scopes(self.get_query_arguments("scope"))
        except ValueError as error:
            decisions.write(self.state, Decision(account, status=400, why=str(error)))
            self.refuse(400, str(error))

    def _refuse(self, account: str, scopes: list[Scope]) -> NoReturn:
        why = "there is no such account, or its password is another"
        unnamed: list[Scope | None] = [None]
        for scope in scopes or unnamed:
            self._note(account, scope, "", 401, why)
        self.refuse(401, why)

    def _allowed(self, account: str, scope: Scope) -> frozenset[str]:
        if scope.type == "repository":
            return self.accounts.allowed(account, scope.name)
        lists = (scope.type, scope.name) == ("registry", "catalog")
        return frozenset("*" if lists and self.accounts.may_list(account) else "")

    def _note(self, account: str, scope: Scope | None, granted: str, status: int, why: str) -> None:
        name = scope.name if scope else ""
        asked = ",".join(scope.actions) if scope else ""
        decisions.write(self.state, Decision(account, name, asked, granted, status, why))


async def serve(state: State) -> None:
    """Listen where the settings say, and answer until the process ends.

    It ends by itself once the state folder is gone, or another one has taken its place there.

    Raises:
        OSError: the port is taken, or the host is no address of this machine.
        StateError: certificate or key are missing.
    """
    settings = state.read(SETTINGS)
    folder = state.folder / FOLDER
    nonce = secrets.token_hex(16)
    parts = {
        "state": state,
        "accounts": Accounts(state),
        "signer": Signer(folder / "tokens.pem", folder / "tokens.key"),
        "nonce": nonce,
    }
    context: ssl.SSLContext | None = None
    if settings["tls"]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
    application = Application([("/token", _Token, parts), ("/alive", _Alive, parts)])
    server = HTTPServer(
        application, ssl_options=context, max_body_size=_LARGEST, max_header_size=_LARGEST
    )
    server.listen(settings["port"], address=settings["host"])
    told = {"pid": os.getpid(), "port": settings["port"], "nonce": nonce}
    told["certificates"] = certificates(state)
    state.write(RUNNING, told)
    ended = asyncio.Event()

    def watch() -> None:
        # Not by State.read, which makes the folder again.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads((state.folder / f"{RUNNING}.json").read_text())["nonce"] == nonce:
                return
        ended.set()

    PeriodicCallback(watch, WATCH_MILLISECONDS).start()
    await ended.wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(State.open(Path(sys.argv[1]))))
