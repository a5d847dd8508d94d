"""The lab's state: one folder per user, small JSON files written atomically, locks."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import platformdirs

from labapp import feedback
from labapp.errors import StateError

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

REPOSITORY = Path(__file__).parent.parent
"""The clone that this package is part of: notebooks, Dockerfiles, tests."""

LABEL = "labapp.lab"
"""The label that everything the lab makes carries; its value is the lab's id."""

SOURCE_LABEL = "labapp.base.source"
"""Where a base image that the lab made comes from."""

ROLE_LABEL = "labapp.role"
"""What a thing is for: ``registry``, ``private``, ``service``, ``run``, ``oneshot``, ``base``."""


@dataclass(frozen=True)
class State:
    """The state folder of one lab; its id, eight hexadecimal digits, was drawn with the folder."""

    folder: Path
    lab_id: str

    @classmethod
    def open(cls, folder: Path | None = None) -> State:
        """Open a state folder, and make it where it does not exist; StateError if it can't be made.

        It is by default ``$LABAPP_STATE``, else the user's own state folder.
        """
        if folder is None:
            named = os.environ.get("LABAPP_STATE")
            folder = Path(named) if named else platformdirs.user_state_path("labapp")
        folder = folder.expanduser().absolute()
        file = folder / "id"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                with filelock.FileLock(folder / "id.lock"):
                    if not file.exists():
                        write_file(file, secrets.token_hex(4))
            return cls(folder, file.read_text(encoding="utf-8").strip())
        except OSError as error:
            raise StateError(
                f"opening the lab's state folder '{folder}': {error.strerror or error}. "
                "Make it writable, or name another one in LABAPP_STATE."
            ) from error

    @property
    def labels(self) -> dict[str, str]:
        """The labels to put on everything that the lab makes."""
        return {LABEL: self.lab_id}

    def path(self, *parts: str) -> Path:
        """Return a path inside the folder; the folders above it exist afterwards."""
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def read(self, name: str) -> dict[str, Any]:
        """Return what was written under a name; empty when nothing was.

        A damaged file is put aside as ``<name>.json.damaged``, and counts as empty.
        """
        path = self.folder / f"{name}.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            path.replace(f"{path}.damaged")
            return {}
        except OSError as error:
            raise StateError(f"reading '{path}': {error.strerror or error}.") from error
        return found if isinstance(found, dict) else {}

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a mapping under a name; StateError if that can't be, say for a full disk."""
        write_file(self.path(f"{name}.json"), json.dumps(content, indent=2, sort_keys=True) + "\n")

    def seal(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a mapping as :meth:`write` does, but so that no word of it stands in the file."""
        text = json.dumps(content).encode()
        self.write(name, {"sealed": self._seal().encrypt(text).decode()})

    def unseal(self, name: str) -> dict[str, Any]:
        """Return what was sealed under a name, or written; as :meth:`read`."""
        found = self.read(name)
        if "sealed" not in found:
            return found
        from cryptography.fernet import InvalidToken

        opened: dict[str, Any] = {}
        with contextlib.suppress(InvalidToken):  # damaged, or of another lab
            opened = json.loads(self._seal().decrypt(found["sealed"]))
        return opened

    def _seal(self) -> Fernet:
        from cryptography.fernet import Fernet

        path = self.path("seal")
        with self.lock("seal", timeout=20):
            if not path.exists():
                write_file(path, Fernet.generate_key())
        return Fernet(path.read_bytes())

    @contextlib.contextmanager
    def lock(self, name: str, *, timeout: float = 1800.0) -> Iterator[None]:
        """Hold a lock that only one process of this lab can hold; StateError after the seconds."""
        lock = filelock.FileLock(self.path(f"{name}.lock"))
        try:
            try:
                lock.acquire(timeout=1)  # seconds; a shorter wait is no news
            except filelock.Timeout:
                feedback.say(f"Waiting for another process of this lab ('{name}').")
                lock.acquire(timeout=timeout)
        except filelock.Timeout as error:
            raise StateError(
                f"waiting for the lock '{name}': another process of this lab has held it for "
                f"{timeout:.0f} s. End that one, then try again."
            ) from error
        try:
            yield
        finally:
            lock.release()


def write_file(path: Path, content: bytes | str, *, mode: int = 0o600) -> None:
    """Write a file, and make its folder: all of it, or, after a crash or a StateError, none.

    The mode is for a new one; a file that was there keeps its own.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(draft, "wb") as file:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(path.stat().st_mode & 0o7777 if path.exists() else mode)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise StateError(
            f"writing '{path}': {error.strerror or error}. Free some disk space ('python3 -m "
            "labapp tidy' helps), or choose a folder that you may write to, then try again."
        ) from error
