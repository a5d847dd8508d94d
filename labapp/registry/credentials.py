"""What ``docker login`` keeps for a registry: read from docker's own configuration, never stored.

``docker`` writes a user's name and password into ``config.json``, or hands them to a helper
program of the system (a keychain). The Docker SDK reads both.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path

import docker.auth
import docker.errors

from labapp.errors import RegistryError


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

    Args:
        address: the registry as references name it, such as ``docker.io`` or ``localhost:41233``.
        file: docker's ``config.json``; by default the user's own.

    Raises:
        RegistryError: docker's configuration is damaged, or its helper program fails.
    """
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
