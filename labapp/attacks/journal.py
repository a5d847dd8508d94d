"""What attacks may touch, the journal of what each one is about to change, and the undo.

An attack touches this lab's own registries, containers and files, and nothing else. A change is
written down before it happens: an entry is a file of its own in the lab's state, so that a process
that dies in mid-attack leaves the list of all that has to be put back. It is undone by what was
changed, whoever did it; what was changed again since is left alone.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from labapp import feedback
from labapp.bench import Bench
from labapp.errors import AttackError, ImageError, LabError, NotInRegistry, RegistryError
from labapp.journey import transfer
from labapp.journey.run import discard, published_url
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.http import same_address
from labapp.registry.manifests import digest_of
from labapp.registry.server import blob_folder
from labapp.state import State, write_file

DELIVERY = "delivery"
"""What stands for the attack in the changes that a delivery itself makes."""


@dataclass(frozen=True)
class Change:
    """One thing that an attack changes, and the data that is needed to put it back."""

    attack: str
    kind: Literal["file", "tag", "blob", "container", "image"]
    what: str
    data: Mapping[str, str] = field(default_factory=dict)
    number: str = field(default_factory=lambda: str(time.time_ns()))

    def __str__(self) -> str:
        return f"{self.kind} '{self.what}'"


@dataclass(frozen=True)
class Journal:
    """The changes of all attacks that have not been undone."""

    state: State

    def note(self, change: Change) -> None:
        """Write down a change that is about to happen."""
        self.state.seal(f"attacks/{change.number}", asdict(change))

    def changes(self) -> list[Change]:
        """Return what has not been undone, the oldest first."""
        found = []
        for path in sorted((self.state.folder / "attacks").glob("*.json")):
            with contextlib.suppress(TypeError):  # It is no change.
                found.append(Change(**self.state.unseal(f"attacks/{path.stem}")))
        return found

    def drop(self, change: Change) -> None:
        """Take a change that was undone from the journal."""
        self.state.path("attacks", f"{change.number}.json").unlink(missing_ok=True)

    def change_file(self, attack: str, path: Path, content: bytes) -> None:
        """Write a file, its bytes so far kept in the journal; its folder is made where missing."""
        data = {"after": digest_of(content)}
        if path.exists():
            data["before"] = base64.b64encode(path.read_bytes()).decode()
        self.note(Change(attack, "file", str(path), data))
        write_file(path, content, mode=0o644)

    def restore_files(self) -> None:
        """Put back all files that attacks changed: that much needs neither engine nor registry."""
        for change in reversed(self.changes()):
            if change.kind == "file":
                restore_file(change)
                self.drop(change)


def restore_file(change: Change) -> bool:
    """Put a file back as it was, unless it was changed again since; tell which."""
    path = Path(change.what)
    is_other = path.exists() and digest_of(path.read_bytes()) != change.data["after"]
    if is_other or not path.parent.is_dir():
        return False
    if "before" in change.data:
        write_file(path, base64.b64decode(change.data["before"]), mode=0o644)
    else:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # It holds something else.
            path.parent.rmdir()
    return True


def own_tag(bench: Bench, target: str | None) -> Reference:
    """Return a reference to a tag in the lab's registry, and refuse any other."""
    own = bench.registry.address
    if target is not None:
        tag = Reference.parse(target)
        is_tag = tag.tag is not None and tag.digest is None
        # All chapters build on the bases.
        if is_tag and same_address(tag.registry, own) and not tag.repository.startswith("base/"):
            return tag
    raise AttackError(
        f"attacking {target!r}: an attack takes a tag in the lab's registry, but none in 'base/', "
        f"of which 'team/base:1' is a copy. Name one of yours, as in target='{own}/shop/web:1'."
    )


def own_path(bench: Bench, path: Path | str) -> Path:
    """Return a path inside the chapter's work folder, with links followed; refuse any other."""
    work, whole = bench.work.resolve(), Path(path).resolve()
    if not whole.is_relative_to(work) or whole == work:
        raise AttackError(
            f"attacking '{path}': it is outside of '{work}'. Copy it there: 'lab.application()'."
        )
    return whole


def container_name(bench: Bench, role: str) -> str:
    """Return the name of the lab's container of a role: ``live``, a delivery's, or ``mirror``."""
    return f"labapp-{role}-{bench.state.lab_id}"


def undo(bench: Bench) -> None:
    """Put everything back that attacks changed, the last change first.

    What can't be put back stays in the journal, and is told when all else was. What there was is
    not told after a delivery, whose faults are to be found.
    """
    journal, failed = Journal(bench.state), []
    changes = journal.changes()
    delivered = any(change.attack == DELIVERY for change in changes)
    if delivered:
        feedback.say("Undone: all that the last delivery left, and the saboteur, if there was one.")
    for change in reversed(changes):
        try:
            done = "Undone" if _undo(bench, change) else "Changed since, or not yet, and left alone"
            if not delivered:
                feedback.say(f"{done}: {change}.")
        except (LabError, OSError) as error:
            failed.append(f"  - {change}: {error}")
        else:
            journal.drop(change)
    if failed:
        listed = "\n".join(failed)
        raise AttackError(
            f"undoing the attacks: this could not be put back:\n{listed}\n"
            "Mend the cause, then undo again. 'python3 -m labapp reset' makes everything new."
        )


def _undo(bench: Bench, change: Change) -> bool:
    """Undo one change, and tell whether there was anything to put back."""
    match change.kind:
        case "file":
            return restore_file(change)
        case "tag":
            return _restore_tag(bench, change)
        case "blob":
            # One that was stored anew has that byte already.
            write_byte(bench, change, "before")
        case "container":
            if container := bench.engine.container(change.what):
                with bench.engine.doing(f"removing the {change}", AttackError):
                    discard(container)
                if url := published_url(container):
                    # Nothing answers any more at the names that came through a mirror.
                    remove_names(bench, f"localhost:{url.rpartition(':')[2]}/")
            if after := change.data.get("after"):
                _discard_manifest(bench.registry, change.data["repository"], after)
        case "image":
            reference = Reference.parse(change.what)
            transfer.remove(bench.engine, reference)
            with contextlib.suppress(NotInRegistry):
                digest = bench.registry.digest(reference)
                bench.registry.delete_manifest(reference.repository, digest)
    return True


def _restore_tag(bench: Bench, change: Change) -> bool:
    """Let a tag name again what it named before, unless it was moved again since; tell which."""
    registry, reference, is_back = bench.registry, Reference.parse(change.what), False
    before, after = change.data["before"], change.data["after"]
    with contextlib.suppress(NotInRegistry):
        if registry.digest(reference) == after:
            raw, media_type = registry.manifest_bytes(reference.repository, before)
            registry.put_manifest(reference.repository, str(reference.tag), raw, media_type or "")
            is_back = True
    held = bench.engine.image(str(reference))
    if held and change.data["diff_id"] in (held.attrs.get("RootFS") or {}).get("Layers", ()):
        # The engine has pulled the forged one. A container may still use it.
        with contextlib.suppress(ImageError):
            transfer.remove(bench.engine, reference)
    _discard_manifest(registry, reference.repository, after)
    return is_back


def _discard_manifest(registry: Registry, repository: str, digest: str) -> None:
    """Delete a forged manifest where no tag names it; one that may not be deleted does no harm."""
    with contextlib.suppress(RegistryError):
        tags = registry.tags(repository)
        if digest not in {registry.resolve(repository, tag) for tag in tags}:
            registry.delete_manifest(repository, digest)


def write_byte(bench: Bench, change: Change, which: str) -> None:
    """Write one byte of a blob; dd would make the file of one that is gone by now."""
    script = '[ ! -f "$1" ] || printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null'
    file, byte = f"{blob_folder(change.data['digest'])}/data", f"\\{change.data[which]}"
    bench.server.storage(["sh", "-c", script, "write", file, change.data["place"], byte])


def remove_names(bench: Bench, beginning: str, *, of: str | None = None) -> None:
    """Take names from the engine's images, by their beginning or all of one; one in use stays."""
    with bench.engine.doing(f"removing the images '{beginning}…'", AttackError):
        images = bench.engine.client.api.images()
    for image in images:
        for name in [*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())]:
            if name.startswith(beginning) or image["Id"] == of:
                with contextlib.suppress(ImageError):
                    transfer.remove(bench.engine, name)
