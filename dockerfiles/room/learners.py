"""Who comes in: learners of a list, and, with the password of the class, those who sign up."""

from __future__ import annotations

import asyncio
import csv
import hmac
import re
import secrets
import sys
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import Any

from jupyterhub.auth import Authenticator
from jupyterhub.slugs import safe_slug
from traitlets import Any as AnyTrait
from traitlets import Unicode

from labapp.private.accounts import Accounts
from labapp.state import State

NAME = r"\w([\w .@+'-]{0,78}\w)?"
"""A learner's name: letters and digits of any script; a dot, a dash or a blank only inside."""

SHORTEST = 4
"""Characters that a password has at least."""


def plain(name: str) -> str:
    """Return a name as everybody is known by it: capitals and composed letters don't count."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).lower())


def account(name: str) -> str:
    """Return what a learner's account is called: letters, digits and dashes, 30 at most."""
    return str(safe_slug(name)) if name else ""


def rights(name: str) -> dict[str, tuple[str, ...]]:
    """Return what a learner may do in the registry of the class."""
    return {"base/*": ("pull",), f"class/{account(name)}/*": ("pull", "push")}


class Learners(Authenticator):
    """Lets accounts in, and makes one for a new name that comes with the class's password.

    A wrong password costs a second, in which nobody at the same address can try that name.
    """

    state = AnyTrait(config=True, help="The state in which the accounts are.")
    class_password = Unicode(config=True, help="What lets a new name in; empty: none.")
    username_pattern = Unicode(NAME, config=True)
    request_otp = True
    otp_prompt = Unicode("The password of the class (the first time only):", config=True)
    seconds = 1.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._turns: dict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    def normalize_username(self, username: str) -> str:
        """Return a name as the hub knows it."""
        return plain(username)

    async def authenticate(self, handler: Any, data: dict[str, str]) -> str | None:
        """Return the name of who has shown the right password, else None."""
        # As the hub will call who comes in: else another spelling of a name had its own password.
        name, password = self.normalize_username(data["username"]), data["password"]
        if not re.fullmatch(NAME, name):
            return None
        key = account(name)
        async with self._turns[key, handler.request.remote_ip]:
            # The check of a password is slow on purpose.
            if await asyncio.to_thread(self._lets_in, name, key, password, data.get("otp") or ""):
                return name
            await asyncio.sleep(self.seconds)
        return None

    def _lets_in(self, name: str, key: str, password: str, shown: str) -> bool:
        accounts = Accounts(self.state)
        with self.state.lock("accounts"):
            if key in accounts.names():
                return accounts.verify(key, password)
            right = hmac.compare_digest(shown.encode(), self.class_password.encode())
            if not (self.class_password and right and len(password) >= SHORTEST):
                return False
            accounts.add(key, password, rights=rights(name))
            return True


def add(state: State, names: Path) -> list[tuple[str, str]]:
    """Give the learners of a list, a name a line, their accounts; return names and passwords.

    A password in the second column is taken; without one, it is drawn. Who has an account already
    gets the new password. ValueError names the first line that can't be; nothing is then added.
    """
    found: dict[str, str] = {}
    with names.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            name, password, *_ = [*(cell.strip() for cell in row), "", ""]
            name = plain(name)
            if not name or (number == 1 and name in {"name", "username"}):
                continue
            if not re.fullmatch(NAME, name):
                raise ValueError(
                    f"line {number}: '{name}' is no name: letters, digits, and inside "
                    "it . - _ @ + ' and blanks, 80 at most."
                )
            if name in found:
                raise ValueError(f"line {number}: '{name}' is there already; capitals don't count.")
            if 0 < len(password) < SHORTEST:
                raise ValueError(f"line {number}: a password has {SHORTEST} characters or more.")
            found[name] = password or secrets.token_urlsafe(6)
    with state.lock("accounts"):
        for name, password in found.items():
            Accounts(state).add(account(name), password, rights=rights(name))
    return list(found.items())


if __name__ == "__main__":
    try:
        csv.writer(sys.stdout).writerows(add(State.open(Path.cwd()), Path(sys.argv[1])))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
