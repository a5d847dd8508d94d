"""Who may do what in the private registry: accounts with a password and rights.

The passwords themselves are nowhere: what is kept is their bcrypt, which tells whether a password
is the right one, and is slow on purpose.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import bcrypt

from labapp.errors import StateError
from labapp.state import State

ANONYMOUS = ""
"""The account of everybody who does not log in."""

ACTIONS = ("pull", "push", "delete")
"""What a right allows: to read images, to store them, to delete them."""

ROUNDS = 10
"""How slow bcrypt is: 2 to that power turns, about 50 ms."""

LONGEST = 72
"""bcrypt reads that many bytes of a password, and no more."""

_STORE = "private/accounts"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Rights = Mapping[str, Sequence[str]]
"""Maps patterns of repositories, ``shop/*``, to actions."""


class Accounts:
    """The accounts of one private registry; several processes may change them at once."""

    def __init__(self, state: State) -> None:
        """Prepare to read and write them in the state folder."""
        self._state = state

    def __repr__(self) -> str:
        return f"Accounts({', '.join(self.names()) or 'none'})"

    def add(self, name: str, password: str = "", *, rights: Rights) -> None:
        """Add an account, or replace the one of that name.

        Args:
            name: letters, digits, dots, dashes; empty for everybody who does not log in.
            password: at most 72 bytes in UTF-8; empty only for the anonymous account.
            rights: what it may do: patterns of repositories (``*`` stands for anything) to
                actions (``pull``, ``push``, ``delete``).

        Raises:
            StateError: a name, password or right that can't be, or the file can't be written.
        """
        doing = f"adding the account '{name}'"
        _check_name(doing, name)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        kept = {"rights": _checked_rights(doing, rights), "password": "", "since": now}
        if name != ANONYMOUS:
            encoded = _checked_password(doing, password)
            kept["password"] = bcrypt.hashpw(encoded, bcrypt.gensalt(ROUNDS)).decode("ascii")
        elif password:
            raise StateError(f"{doing}: who does not log in has no password. Leave it out.")
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
        account = self._read().get(name, {})
        kept = str(account.get("password") or "") if name != ANONYMOUS else ""
        encoded = _bytes(password)
        usable = bool(kept) and len(encoded) <= LONGEST
        try:
            same = bcrypt.checkpw(encoded[:LONGEST], kept.encode() if usable else _nobody())
        except ValueError:  # no bcrypt at all: the file was edited
            return False
        return usable and same

    def since(self, name: str) -> str:
        """Return when an account was added last, as the log of decisions writes times."""
        return str(self._read().get(name, {}).get("since", ""))

    def rights(self, name: str) -> dict[str, list[str]]:
        """Return an account's rights; what somebody has written there that is none counts not."""
        found = self._read().get(name, {}).get("rights")
        if not isinstance(found, dict):
            return {}
        return {
            pattern: [str(action) for action in actions]
            for pattern, actions in found.items()
            if isinstance(actions, list)
        }

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
        found = self._state.read(_STORE)
        return {name: account for name, account in found.items() if isinstance(account, dict)}


def _bytes(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")


@functools.cache
def _nobody() -> bytes:
    """Return the bcrypt of a password that nobody has."""
    return bcrypt.hashpw(bcrypt.gensalt(4), bcrypt.gensalt(ROUNDS))


def _check_name(doing: str, name: str) -> None:
    if name != ANONYMOUS and not _NAME.fullmatch(name):
        raise StateError(
            f"{doing}: a name has letters, digits, dots, dashes and underscores, 64 at most, and "
            "begins with a letter or a digit. Take such a name."
        )


def _checked_password(doing: str, password: str) -> bytes:
    encoded = _bytes(password)
    if not encoded or "\0" in password:
        raise StateError(f"{doing}: a password can't be empty, or hold a zero byte. Take another.")
    if len(encoded) > LONGEST:
        raise StateError(
            f"{doing}: its password has {len(encoded)} bytes, and bcrypt, which keeps it, reads "
            f"no more than {LONGEST}. Take a shorter one."
        )
    return encoded


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
