"""The lab's state: one folder per user, small JSON files written atomically, locks."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from labapp.errors import StateError

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
    """The state folder of one lab.

    Attributes:
        folder: where the files are.
        lab_id: eight hexadecimal digits, drawn when the folder was made.
    """

    folder: Path
    lab_id: str

    @classmethod
    def open(cls, folder: Path | None = None) -> State:
        """Open the state folder, and make it if it does not exist yet.

        Args:
            folder: the folder; by default ``$LABAPP_STATE``, else the user's own state folder.

        Raises:
            StateError: the folder can't be made or written.
        """
        if folder is None:
            named = os.environ.get("LABAPP_STATE")
            folder = Path(named) if named else platformdirs.user_state_path("labapp")
        folder = folder.expanduser().absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lab_id = _lab_id(folder)
        except OSError as error:
            raise StateError(
                f"opening the lab's state folder '{folder}': {error.strerror or error}. "
                "Make it writable, or name another one in LABAPP_STATE."
            ) from error
        return cls(folder=folder, lab_id=lab_id)

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
        except (ValueError, UnicodeDecodeError):
            path.replace(path.with_name(path.name + ".damaged"))
            return {}
        except OSError as error:
            raise StateError(f"reading '{path}': {error.strerror or error}.") from error
        return found if isinstance(found, dict) else {}

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a mapping under a name: all of it, or, after a crash, none of it.

        Raises:
            StateError: the file can't be written, say because the disk is full.
        """
        path = self.path(f"{name}.json")
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        try:
            write_atomically(path, text)
        except OSError as error:
            raise StateError(
                f"writing '{path}': {error.strerror or error}. Free some disk space and try again."
            ) from error

    @contextlib.contextmanager
    def lock(
        self, name: str, *, timeout: float = 1800.0, waiting: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Hold a lock that only one process of this lab can hold.

        Args:
            name: the lock's name.
            timeout: how long to wait for another holder, in seconds.
            waiting: called once when another process holds it.

        Raises:
            StateError: the other holder did not end in time.
        """
        lock = filelock.FileLock(self.path(f"{name}.lock"))
        try:
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                if waiting is not None:
                    waiting()
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


def _lab_id(folder: Path) -> str:
    """Return the folder's lab id; the first process to ask draws it."""
    path = folder / "id"
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as draft:
            draft.write(secrets.token_hex(4) + "\n")
        # A hard link fails if another process was first; a rename would replace its id.
        with contextlib.suppress(FileExistsError):
            os.link(draft.name, path)
        Path(draft.name).unlink()
    for _ in range(20):
        lab_id = path.read_text(encoding="utf-8").strip()
        if len(lab_id) == 8:
            return lab_id
        time.sleep(0.05)
    raise StateError(f"reading '{path}': it holds {lab_id!r}, not a lab id. Delete the file.")


def write_atomically(path: Path, content: bytes | str, *, mode: int = 0o600) -> None:
    """Write a file: all of it, or, after a crash, none of it.

    Raises:
        OSError: it can't be written, say because the disk is full; what was there is untouched.
    """
    draft, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(draft, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
