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

import base64
import contextlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

from labapp.errors import RegistryError
from labapp.registry.http import (
    ANSWER_LIMIT,
    Connection,
    Held,
    is_local,
    wants_login,
)
from labapp.registry.strangers import FieldError, printable, read_json

SHORTEST_SECONDS = 60.0
"""How long a token is good for at least, and where its service does not tell."""

_TOKEN = {"token": str, "access_token": str, "expires_in": object}
_IS_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_PARAMETER = re.compile(r'(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


@dataclass(frozen=True)
class Credentials:
    """Who the learner is at one registry: a name and a password, or a token in their place."""

    username: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header (RFC 7617)."""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


def docker_credentials(address: str, *, file: Path | None = None) -> Credentials | None:
    """Return what ``docker login`` has kept for a registry; None if nothing is.

    It is read by the Docker SDK from docker's own configuration (by default the user's), or from
    the system's keychain, and never stored. RegistryError if that fails.
    """
    import docker.auth  # slow, and most registries never ask
    import docker.errors

    if file is not None and not file.exists():
        return None  # the SDK would look at the user's own
    try:
        found = docker.auth.load_config(file and str(file)).resolve_authconfig(address)
    # The SDK trusts the file to be an object of objects; where it is not, it stumbles anywhere.
    except (docker.errors.DockerException, ValueError, OSError, AttributeError, TypeError) as error:
        raise RegistryError(
            f"looking up the login for '{address}': docker's configuration can't be read ({error})."
            f" 'docker logout {address}' and 'docker login {address}' write it anew."
        ) from error
    if not isinstance(found, dict):
        return None
    # A helper program's answer has its fields in capitals, the file's in small letters.
    fields = {str(name).lower(): str(value or "") for name, value in found.items()}
    known = Credentials(
        fields.get("username", ""), fields.get("password", ""), fields.get("identitytoken", "")
    )
    return known if known.identity_token or known.username else None


@dataclass(frozen=True)
class Login:
    """How a registry's 401 is answered.

    ``find`` tells what the learner has for the address; ``certificates`` is a file of the
    authorities to trust.
    """

    address: str
    url: str
    find: Callable[[str], Credentials | None]
    certificates: Path | None

    def __call__(self, refused: requests.Response) -> Held:
        """Return what an answer asks for, as far as it is to be had.

        RegistryError if the token service refuses, or is none.
        """
        challenges: dict[str, dict[str, str]] = {}
        for value in refused.raw.headers.getlist("WWW-Authenticate"):
            scheme, _, rest = value.strip().partition(" ")
            challenges[scheme.lower()] = {
                name.lower(): re.sub(r"\\(.)", r"\1", quoted) or bare
                for name, quoted, bare in _PARAMETER.findall(rest)
            }
        if "bearer" in challenges:
            return self._token(challenges["bearer"])
        if "basic" not in challenges:
            return Held(advice=wants_login(self.address))
        known, advice = self._known(self.url)
        if known is not None and known.password:
            return Held(known.basic, float("inf"), advice)
        return Held(advice=advice)

    def _known(self, *places: str) -> tuple[Credentials | None, str]:
        """Return the credentials where they may be sent, and advice should they not do."""
        try:
            known = self.find(self.address)
        except RegistryError as error:
            return None, f"it wants a login. {str(error)[:1].upper()}{str(error)[1:]}"
        at_home = is_local(self.url)
        for place in places:
            if place.startswith("http:") and not (at_home and is_local(place)):
                return None, (
                    f"it wants a login over plain HTTP ('{place}'), where everybody on the way can "
                    "read a password; the lab sends none. Ask for a registry with HTTPS."
                )
        if known is None:
            return None, wants_login(self.address)
        return known, (
            f"'{self.address}' does not take the login of '{known.username}': it knows no such "
            "account, or its password is another. Log in anew with "
            f"'docker login {self.address}'."
        )

    def _realm(self, text: str) -> str:
        """Return the token service's address."""
        with contextlib.suppress(ValueError):  # not an address at all
            realm = printable(urljoin(self.url, text))
            if text and urlsplit(realm).hostname and realm.startswith(("https:", "http:")):
                return realm
        raise RegistryError(
            f"'{self.address}' wants a token, but does not name a token service. "
            "Take another registry."
        )

    def _token(self, asked: Mapping[str, str]) -> Held:
        """Ask the token service for a token."""
        realm = self._realm(asked.get("realm", ""))
        known, advice = self._known(self.url, realm)
        query = {"service": asked.get("service", ""), "client_id": "labapp"}
        scopes = asked.get("scope", "").split()
        request: dict[str, Any] = {"method": "GET", "params": {**query, "scope": scopes}}
        signature = ""
        if known and known.identity_token:
            # OAuth2: the token of the login is exchanged for one of this scope.
            query |= {"grant_type": "refresh_token", "refresh_token": known.identity_token}
            request = {"method": "POST", "data": {**query, "scope": " ".join(scopes)}}
        elif known:
            request["params"]["account"] = known.username
            signature = known.basic

        def sign(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
            if signature:
                prepared.headers["Authorization"] = signature
            return prepared

        host, began = urlsplit(realm).netloc, time.monotonic()
        service = Connection(host, realm, sign, self.certificates)
        doing = f"asking the token service of '{self.address}'"
        # Who has a password is not sent on with it.
        with service.send(url=realm, doing=doing, follow=known is None, **request) as answer:
            answer.read(ANSWER_LIMIT)
        if answer.status in (401, 403):
            raise RegistryError(advice)
        if answer.status != 200:
            raise RegistryError(f"{doing}: '{host}' failed ({answer.said}). Try again later.")
        try:
            told = read_json(answer.body, _TOKEN)
            token = told.get("token") or told.get("access_token", "")
            if not _IS_TOKEN.fullmatch(token):
                raise FieldError("what it gives is no token")
        except FieldError as error:
            raise RegistryError(
                f"what answers at '{host}' is no token service: {error}. Take another registry."
            ) from error
        if known:
            advice = (
                f"'{known.username or 'this login'}' may not do that at '{self.address}', or it "
                "does not have it. Check the name, or ask the repository's owner for the right."
            )
        lasts = told.get("expires_in")
        seconds = max(lasts if isinstance(lasts, int | float) else 0, SHORTEST_SECONDS)
        # Not to the last moment: the token has to last until the registry reads it.
        return Held(f"Bearer {token}", began + seconds * 0.9, advice)
