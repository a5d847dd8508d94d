"""Logging in at a registry: name and password, or a token from the service that it names.

A registry that wants to know who asks answers 401 and says how it wants to be told::

    WWW-Authenticate: Basic realm="Registry"
    WWW-Authenticate: Bearer realm="https://auth.example/token",service="…",scope="repository:…"

To ``Basic``, name and password are sent. To ``Bearer``, the token service at ``realm`` is asked
for a token of that scope, with what ``docker login`` keeps, or else anonymously: public images
want a token, but no login. A password leaves for two places only, the registry and its token
service, and over HTTPS, except on this machine.

Source: CNCF Distribution, "Token Authentication Specification" and "OAuth2 Token Authentication".
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from labapp.errors import RegistryError, RegistryUnreachable
from labapp.manifests.fields import FieldError, Fields
from labapp.registry.addresses import is_local, same_origin
from labapp.registry.answers import ANSWER_SECONDS, CONNECT_SECONDS, said_in, unreachable
from labapp.registry.credentials import Credentials

CLIENT_ID = "labapp"
TOKEN_LIMIT = 1024 * 1024
"""The longest answer of a token service that is read, in bytes."""

SHORTEST_SECONDS = 60.0
"""How long a token is good for at least, and where its service does not tell."""

_REPOSITORY = re.compile(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/")
_PARAMETER = re.compile(r'(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


@dataclass(frozen=True)
class Signature:
    """A request's ``Authorization`` (requests calls it), or None for a request without a login.

    Given with every request, so that requests itself doesn't look for a login in ``.netrc``.
    """

    value: str | None = None

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the header on a request that is about to be sent."""
        if self.value is not None:
            request.headers["Authorization"] = self.value
        return request


@dataclass(frozen=True)
class _Held:
    signature: Signature
    until: float  # by time.monotonic()


class Logins:
    """Who the lab is at one registry; several threads may use it at once.

    Attributes:
        advice: for a request that is refused all the same, why, and what to do.
    """

    def __init__(
        self,
        address: str,
        url: str,
        *,
        credentials: Callable[[str], Credentials | None],
        certificates: Path | None = None,
    ) -> None:
        """Prepare to log in; nothing is looked up or sent before the registry asks.

        Args:
            address: the registry as references name it.
            url: where it is, without a path.
            credentials: what the learner has for that address.
            certificates: a file of further authorities to trust, for a registry's own TLS.
        """
        self._address = address
        self._url = url
        self._credentials = credentials
        self._certificates = certificates
        self._held: dict[tuple[str, bool], _Held] = {}
        self._lock = threading.Lock()
        self._wants_login = (
            f"'{address}' wants a login for it, or does not have it. Check the name, log in with "
            f"'docker login {address}', then try again."
        )
        self.advice = self._wants_login

    def signature(self, method: str, url: str) -> Signature:
        """Return what goes with a request as far as is known before it is sent."""
        held = self._held.get(_purpose(method, url))
        if held and time.monotonic() < held.until and same_origin(url, self._url):
            return held.signature
        return Signature()

    def renew(
        self, method: str, url: str, refused: requests.Response, *, sent: Signature, doing: str
    ) -> bool:
        """Do what an answer with status 401 asks for.

        Args:
            method: of the request that was refused.
            url: where it was sent.
            refused: the answer.
            sent: what went with the request.
            doing: what is being done, to begin an error with.

        Returns:
            Whether the request is worth repeating, with a new :meth:`signature`.

        Raises:
            RegistryError: the token service refuses, or is none.
            RegistryUnreachable: it can't be reached.
        """
        # An answer from elsewhere, say a storage service after a redirect, is not the registry's.
        if not (same_origin(url, self._url) and same_origin(refused.url, self._url)):
            return False
        purpose = _purpose(method, url)
        with self._lock:
            held = self._held.get(purpose)
            if held and held.signature != sent and time.monotonic() < held.until:
                return True  # another thread was first
            scheme, fields = _challenge(refused)
            self.advice = self._wants_login
            if not scheme:
                return False
            realm = self._realm(fields, doing) if scheme == "bearer" else ""
            known = self._known(realm)
            if scheme == "basic" and known is not None and known.password:
                new = _Held(Signature(known.basic), float("inf"))
            elif scheme == "bearer":
                new = self._fetch(realm, fields, known, doing)
            else:
                return False
            self._held[purpose] = new
            return new.signature != sent

    def _known(self, realm: str) -> Credentials | None:
        """Return the learner's credentials where they may be sent, and settle the advice."""
        try:
            known = self._credentials(self._address)
        except RegistryError as error:
            self.advice = f"it wants a login. {str(error)[:1].upper()}{str(error)[1:]}"
            return None
        if place := self._open_place(realm):
            self.advice = (
                f"it wants a login over plain HTTP ('{place}'), where everybody on the way can "
                "read a password; the lab sends none. Ask for a registry with HTTPS."
            )
            return None
        if known is not None:
            self.advice = (
                f"'{self._address}' does not take the login of '{known.username}': it knows no "
                "such account, or its password is another. Log in anew with "
                f"'docker login {self._address}'."
            )
        return known

    def _open_place(self, realm: str) -> str:
        """Return the place that a password would reach over plain HTTP; empty if there is none."""
        at_home = is_local(self._url)
        for place in (self._url, realm):
            if place.startswith("http:") and not (at_home and is_local(place)):
                return place
        return ""

    def _realm(self, fields: Mapping[str, str], doing: str) -> str:
        """Return the token service's address."""
        with contextlib.suppress(ValueError):  # not an address at all
            realm = urljoin(self._url, fields["realm"]) if fields.get("realm") else ""
            if urlsplit(realm).hostname and realm.startswith(("https:", "http:")):
                return realm
        raise RegistryError(
            f"{doing}: '{self._address}' wants a token, but does not name a token service. "
            "Take another registry."
        )

    def _fetch(
        self, realm: str, fields: Mapping[str, str], known: Credentials | None, doing: str
    ) -> _Held:
        """Ask the token service for a token."""
        host = urlsplit(realm).netloc
        asked = time.monotonic()
        status, body = self._ask_service(realm, fields, known, doing)
        if status in (401, 403):
            raise RegistryError(f"{doing}: {self.advice}")
        if status != 200:
            said = said_in(body) or f"status {status}"
            raise RegistryError(
                f"{doing}: the token service '{host}' of '{self._address}' failed ({said}). "
                "Try again later."
            )
        try:
            answer = Fields.read(body)
            token = answer.text("token") or answer.needed_text("access_token")
            if not _TOKEN.fullmatch(token):
                raise FieldError("its token has characters that no token has")
        except FieldError as error:
            raise RegistryError(
                f"{doing}: what answers at '{host}' is no token service: {error}. "
                "Take another registry."
            ) from error
        lasts = answer.values.get("expires_in")
        seconds = float(lasts) if isinstance(lasts, int | float) else SHORTEST_SECONDS
        if known is not None:
            self.advice = (
                f"'{known.username or 'this login'}' may not do that at '{self._address}', or it "
                "does not have it. Check the name, or ask the repository's owner for the right."
            )
        # Not to the last moment: the token has to last until the registry reads it.
        return _Held(Signature(f"Bearer {token}"), asked + max(seconds, SHORTEST_SECONDS) * 0.9)

    def _ask_service(
        self, realm: str, fields: Mapping[str, str], known: Credentials | None, doing: str
    ) -> tuple[int, bytes]:
        asks = {"service": fields.get("service", ""), "client_id": CLIENT_ID}
        scopes = fields.get("scope", "").split()
        with requests.Session() as session:
            session.trust_env = not is_local(realm)
            method, query, form, signature = "GET", None, None, Signature()
            if known is not None and known.identity_token:
                # OAuth2: the token of the login is exchanged for one of this scope.
                method = "POST"
                form = {
                    **asks,
                    "grant_type": "refresh_token",
                    "refresh_token": known.identity_token,
                    "scope": " ".join(scopes),
                }
            else:
                query = {**asks, "scope": scopes}
                if known is not None:
                    signature = Signature(known.basic)
                    query["account"] = known.username
            try:
                with session.request(
                    method,
                    realm,
                    params=query,
                    data=form,
                    auth=signature,
                    verify=str(self._certificates) if self._certificates else True,
                    stream=True,
                    timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
                    allow_redirects=known is None,
                ) as answer:
                    body = answer.raw.read(TOKEN_LIMIT, decode_content=True) or b""
                    return answer.status_code, body
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                cause = unreachable(error, urlsplit(realm).netloc)
                raise RegistryUnreachable(
                    f"{doing}: asking the token service of '{self._address}': {cause}"
                ) from error


def _purpose(method: str, url: str) -> tuple[str, bool]:
    """Return what a request needs a right for: the repository, and whether it only reads.

    A registry names the scope itself, but only once it has refused; requests of the same purpose
    are given the same scope, and so can share a token.
    """
    path = urlsplit(url).path
    found = _REPOSITORY.match(path)
    return (found[1] if found else path, method in ("GET", "HEAD"))


def _challenge(refused: requests.Response) -> tuple[str, dict[str, str]]:
    """Return the scheme that a registry asks for, and its parameters (RFC 9110, 11.2)."""
    headers = getattr(refused.raw, "headers", None)
    values = headers.getlist("WWW-Authenticate") if headers is not None else []
    found: dict[str, dict[str, str]] = {}
    for value in values:
        scheme, _, rest = value.strip().partition(" ")
        found[scheme.lower()] = {
            name.lower(): re.sub(r"\\(.)", r"\1", quoted) or bare
            for name, quoted, bare in _PARAMETER.findall(rest)
        }
    scheme = next((one for one in ("bearer", "basic") if one in found), "")
    return scheme, found.get(scheme, {})
