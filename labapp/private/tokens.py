"""Tokens: what is asked for, and what is signed.

Source: CNCF Distribution, "Token Authentication Specification", "Token Scope Documentation" and
"Token Authentication Implementation" (the claims of the JSON web token).
"""

from __future__ import annotations

import base64
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from joserfc import jwt
from joserfc.jwk import ECKey

from labapp.errors import StateError

ISSUER = "the lab's token service"
SERVICE = "the lab's private registry"
SECONDS = 300.0
"""How long a token is valid."""

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
    """Read scopes, each ``repository:shop/web:pull,push``, or several with spaces between them.

    Raises:
        ValueError: one of them is not of that form.
    """
    found = []
    for text in " ".join(texts).split():
        match = _SCOPE.fullmatch(text)
        if match is None:
            raise ValueError(f"the scope {text[:120]!r} is not of the form 'type:name:actions'")
        actions = tuple(dict.fromkeys(action for action in match[3].split(",") if action))
        found.append(Scope(match[1], match[2], actions))
    return found


@dataclass(frozen=True)
class Token:
    """A signed token; ``issued`` by the clock in seconds, ``seconds`` how long it is valid."""

    text: str = field(repr=False)
    issued: float
    seconds: float


class Signer:
    """Signs tokens with a key whose certificate the registry was given."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Read a certificate and its key, elliptic curve P-256, in PEM.

        Raises:
            StateError: a file is missing or damaged.
        """
        try:
            found = x509.load_pem_x509_certificate(certificate.read_bytes())
            private = serialization.load_pem_private_key(key.read_bytes(), None)
            pem = private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            self._key = ECKey.import_key(pem)
        except (OSError, ValueError) as error:
            raise StateError(
                f"reading the key '{key}' that signs tokens: {error}. Start the registry again."
            ) from error
        der = found.public_bytes(serialization.Encoding.DER)
        # The registry verifies with the key in here, after it has found whom to trust for it.
        self._header = {
            "typ": "JWT",
            "alg": "ES256",
            "x5c": [base64.b64encode(der).decode("ascii")],
        }

    def sign(self, account: str, access: Iterable[Scope], *, seconds: float = SECONDS) -> Token:
        """Sign a token.

        Args:
            account: for whom.
            access: what it opens.
            seconds: how long it is valid; below 0, it has expired already.
        """
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": account,
            "iat": now,
            "nbf": min(now, now + int(seconds)) - 10,
            "exp": now + int(seconds),
            "jti": secrets.token_hex(8),
            "access": [
                {"type": one.type, "name": one.name, "actions": list(one.actions)} for one in access
            ],
        }
        text = jwt.encode(self._header, claims, self._key, algorithms=["ES256"])
        return Token(text, now, seconds)
