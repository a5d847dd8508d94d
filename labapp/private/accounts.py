"""Who may do what in the private registry: accounts with a password and rights.

The passwords themselves are nowhere: what is kept is their scrypt (RFC 7914), which tells whether
a password is the right one, and is slow on purpose.
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

Rights = Mapping[str, Sequence[str]]
"""Maps patterns of repositories, ``shop/*``, to actions."""


class Accounts:
    """The accounts of one private registry; several processes may change them at once."""

    def __init__(self, state: State) -> None:
        self._state = state

    def __repr__(self) -> str:
        return f"Accounts({', '.join(self.names()) or 'none'})"

    def add(self, name: str, password: str = "", *, rights: Rights) -> None:
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
        if name != ANONYMOUS and not _NAME.fullmatch(name):
            raise StateError(
                f"{doing}: a name has letters, digits, dots, dashes and underscores, 64 at most, "
                "and begins with a letter or a digit. Take such a name."
            )
        if name == ANONYMOUS and password:
            raise StateError(f"{doing}: who does not log in has no password. Leave it out.")
        if name != ANONYMOUS and not password:
            raise StateError(f"{doing}: a password can't be empty. Take another.")
        kept = {
            "rights": _checked_rights(doing, rights),
            "password": _kept(password) if password else "",
            "since": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        with self._state.lock("private-accounts"):
            self._state.write(_STORE, {**self._read(), name: kept})

    def remove(self, name: str) -> None:
        """Remove an account.

        Raises:
            StateError: there is none of that name.
        """
        with self._state.lock("private-accounts"):
            accounts = self._read()
            if accounts.pop(name, None) is None:
                raise StateError(
                    f"removing the account '{name}': there is none. "
                    f"There are: {', '.join(accounts) or 'none'}."
                )
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
        found: set[str] = set()
        for pattern, actions in self.rights(name).items():
            if fnmatchcase(repository, pattern):
                found.update(actions)
        return frozenset(found & set(ACTIONS))

    def may_list(self, name: str) -> bool:
        """Tell whether an account may list all repositories: who may pull each of them."""
        return "pull" in self.rights(name).get("*", ())

    def damaged(self) -> str:
        """Return what to do where the file was damaged and put aside; empty where it was not."""
        file = self._state.path(f"{_STORE}.json.damaged")
        if self._read() or not file.exists():
            return ""
        return (
            f"The accounts' file was damaged, and is now '{file}': there are no accounts any "
            "more. Add them again."
        )

    def _read(self) -> dict[str, dict[str, Any]]:
        return self._state.read(_STORE)


def _kept(password: str, salt: str = "") -> str:
    """Return what is kept of a password, ``salt$scrypt``: with a new salt, or a known one."""
    salt = salt or secrets.token_hex(16)
    encoded = password.encode("utf-8", "surrogatepass")
    return f"{salt}${hashlib.scrypt(encoded, salt=salt.encode(), n=2**14, r=8, p=1).hex()}"


def _checked_rights(doing: str, rights: Rights) -> dict[str, list[str]]:
    checked = {}
    for pattern, actions in rights.items():
        unknown = [actions] if isinstance(actions, str) else sorted(set(actions) - set(ACTIONS))
        if unknown or not pattern:
            raise StateError(
                f"{doing}: {unknown or [pattern]} is no right. Rights are written as "
                "{'shop/*': ('pull', 'push')}; the actions are " + ", ".join(ACTIONS) + "."
            )
        checked[pattern] = [action for action in ACTIONS if action in actions]
    return checked
