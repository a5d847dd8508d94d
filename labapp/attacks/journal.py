"""What attacks may touch, and the journal of what each one is about to change.

An attack touches this lab's own registries, containers and files, and nothing else. A change is
written down before it happens: an entry is a file of its own in the lab's state, so that a process
that dies in mid-attack leaves the list of all that has to be put back, and a damaged entry takes no
other with it.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import docker.errors

from labapp.bench import Bench
from labapp.errors import AttackError, StateError
from labapp.reference import Reference
from labapp.registry.http import same_address
from labapp.registry.manifests import digest_of
from labapp.state import LABEL, State, write_atomically

if TYPE_CHECKING:
    from docker.models.containers import Container

FOLDER = "attacks"
"""Where in the state the entries are."""

BASES = "base/"
"""The repositories that all chapters build on; an attack works on a copy."""

Kind = Literal["file", "tag", "blob", "container", "image"]


@dataclass(frozen=True)
class Change:
    """One thing that an attack changes.

    The data is what is needed to put it back; the number is that of its entry in the journal.
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
        """Write down a change that is about to happen, and return it with its number."""
        change = replace(change, number=str(time.time_ns()))
        self._state.write(f"{FOLDER}/{change.number}", asdict(change))
        return change

    def changes(self) -> list[Change]:
        """Return what has not been undone, the oldest first; damaged entries are put aside."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            entry: dict[str, Any] = self._state.read(f"{FOLDER}/{path.stem}")
            with contextlib.suppress(TypeError):  # It is no change.
                found.append(Change(**entry | {"number": path.stem}))
        return found

    def drop(self, change: Change) -> None:
        """Take a change that was undone from the journal."""
        (self._folder / f"{change.number}.json").unlink(missing_ok=True)

    def change_file(self, attack: str, path: Path, content: bytes) -> None:
        """Write a file, its bytes so far kept in the journal; its folder is made where missing."""
        try:
            data = {"after": digest_of(content)}
            if path.exists():
                data["before"] = base64.b64encode(path.read_bytes()).decode()
            self.note(Change(attack, "file", str(path), data))
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, content)
        except OSError as error:
            raise StateError(
                f"writing '{path}': {error.strerror or error}. Make it writable, then try again."
            ) from error

    def restore_files(self) -> None:
        """Put back all files that attacks changed: that much needs neither engine nor registry."""
        for change in reversed(self.changes()):
            if change.kind == "file":
                restore_file(change)
                self.drop(change)


def restore_file(change: Change) -> str:
    """Put a file back as it was, unless it was changed again since; say what was done."""
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
        with contextlib.suppress(OSError):  # It holds something else.
            path.parent.rmdir()
    except (OSError, ValueError) as error:
        raise AttackError(
            f"putting '{path}' back: {error}. Make the file and its folder writable, then undo "
            "again; or take a new copy of the application with 'fresh=True'."
        ) from error
    return f"removed '{path}'"


def _write(path: Path, content: bytes) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    write_atomically(path, content, mode=mode)


def own_tag(bench: Bench, target: str) -> Reference:
    """Return a reference to a tag in the lab's registry, and refuse any other."""
    reference, own = Reference.parse(target), bench.registry.address
    refusal = ""
    if not same_address(reference.registry, own):
        refusal = f"the lab attacks its own registry, and not '{reference.registry}'."
    elif reference.repository.startswith(BASES):
        refusal = f"all chapters build on '{BASES}…'; 'team/base:1' is a copy for attacks."
    elif reference.tag is None or reference.digest is not None:
        refusal = "an attack moves or watches a tag."
    if refusal:
        raise AttackError(
            f"attacking '{reference}': {refusal} Name an image as '{own}/team/web:1'."
        )
    return reference


def own_path(bench: Bench, path: Path) -> Path:
    """Return a path inside the chapter's work folder, with links followed; refuse any other."""
    work, whole = bench.work.resolve(), path.resolve()
    if not whole.is_relative_to(work) or whole == work:
        raise AttackError(
            f"attacking '{path}': it is not in this chapter's folder '{work}'. Make a copy there "
            "first: 'lab.application()'."
        )
    return whole


def service_name(bench: Bench) -> str:
    """Return the name of the container that a delivery script starts."""
    return f"labapp-live-{bench.state.lab_id}"


def own_container(bench: Bench, name: str) -> Container | None:
    """Return the container of a name, if there is one; one of somebody else's is refused."""
    with bench.engine.doing(f"looking for the container '{name}'", AttackError):
        try:
            container = bench.engine.client.containers.get(name)
        except docker.errors.NotFound:
            return None
    # A delivery script need not label what it starts; the name is this lab's all the same.
    if container.labels.get(LABEL) != bench.state.lab_id and name != service_name(bench):
        raise AttackError(
            f"attacking the container '{name}': this lab did not start it. Rename it, or "
            f"remove it with 'docker rm -f {name}' if it is yours."
        )
    return container
