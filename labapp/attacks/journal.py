"""The attacks' journal: what each one is about to change, written down before it happens.

An entry is a file of its own in the lab's state, so that a process that dies in the middle of an
attack leaves the list of all that has to be put back, and a damaged entry takes no other with it.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from labapp.errors import AttackError, StateError
from labapp.manifests import digest_of
from labapp.state import State

FOLDER = "attacks"
"""Where in the state the entries are."""

Kind = Literal["file", "tag", "blob", "container", "image"]


@dataclass(frozen=True)
class Change:
    """One thing that an attack changes.

    Attributes:
        attack: the attack's id, such as ``base``.
        kind: ``file`` of a chapter, ``tag`` or ``blob`` of the registry, ``container`` that is
            started, or ``image`` that the engine gets a name for.
        what: the thing: a path, a repository with its tag, a digest, a name.
        data: what is needed to put it back.
        number: where the entry stands in the journal; empty as long as it does not.
    """

    attack: str
    kind: Kind
    what: str
    data: Mapping[str, str] = field(default_factory=dict, repr=False)
    number: str = ""

    def __str__(self) -> str:
        return f"{self.kind} '{self.what}'"


class Journal:
    """The changes of all attacks that have not been undone."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._folder = state.path(FOLDER, "entry").parent

    def note(self, change: Change) -> Change:
        """Write down a change that is about to happen, and return it with its number.

        Raises:
            StateError: the entry can't be written; then nothing must be changed.
        """
        with self._state.lock("attacks"):
            last = max((int(name.stem) for name in self._entries()), default=0)
            number = f"{last + 1:06}"
            content = {"attack": change.attack, "kind": change.kind, "what": change.what}
            self._state.write(f"{FOLDER}/{number}", {**content, "data": dict(change.data)})
        return Change(change.attack, change.kind, change.what, change.data, number)

    def changes(self) -> list[Change]:
        """Return what has not been undone, the oldest first; damaged entries are put aside."""
        found = []
        for path in self._entries():
            entry = self._state.read(f"{FOLDER}/{path.stem}")
            if entry.get("kind") in get_args(Kind) and isinstance(entry.get("data"), dict):
                data = {str(name): str(value) for name, value in entry["data"].items()}
                what, attack = str(entry.get("what")), str(entry.get("attack"))
                found.append(Change(attack, entry["kind"], what, data, path.stem))
        return found

    def drop(self, change: Change) -> None:
        """Take a change that was undone from the journal."""
        (self._folder / f"{change.number}.json").unlink(missing_ok=True)

    def change_file(self, attack: str, path: Path, content: bytes) -> Change:
        """Write a file, its bytes so far kept in the journal; its folder is made where missing.

        Args:
            attack: the attack's id.
            path: the file.
            content: what it is to hold.

        Raises:
            StateError: the file or the entry can't be written.
        """
        try:
            before = path.read_bytes() if path.exists() else None
            data = {"after": digest_of(content)}
            if before is None:
                made = [str(folder) for folder in path.parents if not folder.exists()]
                data["made"] = "\n".join(made)
            else:
                data["before"] = base64.b64encode(before).decode()
            change = self.note(Change(attack, "file", str(path), data))
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, content)
        except OSError as error:
            raise StateError(
                f"writing '{path}': {error.strerror or error}. Make it writable, then try again."
            ) from error
        return change

    def restore_files(self) -> list[str]:
        """Put back all files that attacks changed: that much needs neither engine nor registry.

        Returns:
            What was done, a line a file.

        Raises:
            AttackError: a file can't be written.
        """
        done = []
        for change in reversed(self.changes()):
            if change.kind == "file":
                done.append(restore_file(change))
                self.drop(change)
        return done

    def _entries(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("*.json") if path.stem.isdigit())


def restore_file(change: Change) -> str:
    """Put a file back as it was, unless it was changed again since; say what was done.

    Raises:
        AttackError: the file can't be written.
    """
    path = Path(change.what)
    try:
        if not path.parent.is_dir():
            return f"'{path}' is gone, and its folder too"
        if path.exists() and digest_of(path.read_bytes()) != change.data["after"]:
            return f"left '{path}' alone: it was changed again since, or had not been changed yet"
        if "before" in change.data:
            _write(path, base64.b64decode(change.data["before"]))
            return f"put '{path}' back as it was"
        path.unlink(missing_ok=True)
        for folder in filter(None, change.data.get("made", "").split("\n")):
            # One that holds something else by now stays.
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
    except (OSError, ValueError) as error:
        raise AttackError(
            f"putting '{path}' back: {error}. Make the file and its folder writable, then undo "
            "again; or take a new copy of the application with 'fresh=True'."
        ) from error
    return f"removed '{path}'"


def _write(path: Path, content: bytes) -> None:
    """Write a file: all of it, or, after a crash, none of it."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(content)
    draft.replace(path)
