"""Who may do what in the private registry: accounts with a password and rights.

Of a password its scrypt (RFC 7914) is kept, which tells the right one, and is slow on purpose.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from labapp.errors import StateError
from labapp.state import State

ANONYMOUS = ""
"""The account of everybody who does not log in."""

ACTIONS = ("pull", "push", "delete")
"""What a right allows: to read images, to store them, to delete them."""

_STORE = "private/accounts"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Accounts:
    """The accounts of one private registry."""

    def __init__(self, state: State) -> None:
        self._state = state

    def add(self, name: str, password: str = "", *, rights: Mapping[str, Sequence[str]]) -> None:
        """Add an account, or replace the one of that name.

        Args:
            name: letters, digits, dots, dashes; empty for everybody who does not log in.
            password: any text; empty only for the anonymous account.
            rights: what it may do: patterns of repositories (``*`` stands for anything) to
                actions (``pull``, ``push``, ``delete``).

        Raises:
            StateError: a name, password or right that can't be, or the file can't be written.
        """
        doing = f"adding the account '{name}'"
        if bool(password) != bool(name) or not (name == ANONYMOUS or _NAME.fullmatch(name)):
            raise StateError(
                f"{doing}: a name has up to 64 letters, digits, '.', '_' and '-', the first no "
                "sign; and it has a password. Who does not log in has neither."
            )
        for pattern, actions in rights.items():
            if not pattern or isinstance(actions, str) or not set(actions) <= set(ACTIONS):
                raise StateError(
                    f"{doing}: {pattern!r}: {actions!r} is no right. Rights are written as "
                    "{'shop/*': ('pull', 'push')}; the actions are " + ", ".join(ACTIONS) + "."
                )
        kept = {
            "rights": {pattern: list(actions) for pattern, actions in rights.items()},
            "password": _kept(password) if password else "",
            "since": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        self._state.write(_STORE, {**self._read(), name: kept})

    def remove(self, name: str) -> None:
        """Remove an account; StateError if there is none of that name."""
        accounts = self._read()
        if accounts.pop(name, None) is None:
            there = ", ".join(accounts) or "none"
            raise StateError(f"removing the account '{name}': there is none. There are: {there}.")
        self._state.write(_STORE, accounts)

    def names(self) -> list[str]:
        """Return the names of all accounts, sorted; without the anonymous one."""
        return sorted(name for name in self._read() if name != ANONYMOUS)

    def verify(self, name: str, password: str) -> bool:
        """Tell whether a password is an account's; as slow for an account that there isn't."""
        kept = str(self._read().get(name, {}).get("password") or "")
        salt, _, _ = kept.partition("$")
        return hmac.compare_digest(_kept(password, salt).encode(), kept.encode())

    def since(self, name: str) -> str:
        """Return when an account was added last, as the log of decisions writes times."""
        return str(self._read().get(name, {}).get("since", ""))

    def rights(self, name: str) -> dict[str, list[str]]:
        """Return an account's rights; none for one that there isn't."""
        return dict(self._read().get(name, {}).get("rights", {}))

    def allowed(self, name: str, repository: str) -> frozenset[str]:
        """Return what an account may do in a repository: some of :data:`ACTIONS`."""
        rights = self.rights(name).items()
        held = [actions for pattern, actions in rights if fnmatchcase(repository, pattern)]
        return frozenset[str]().union(*held)

    def _read(self) -> dict[str, dict[str, Any]]:
        return self._state.read(_STORE)


def _kept(password: str, salt: str = "") -> str:
    """Return what is kept of a password, ``salt$scrypt``: with a new salt, or a known one."""
    salt = salt or secrets.token_hex(16)
    encoded = password.encode("utf-8", "surrogatepass")
    return f"{salt}${hashlib.scrypt(encoded, salt=salt.encode(), n=2**14, r=8, p=1).hex()}"
