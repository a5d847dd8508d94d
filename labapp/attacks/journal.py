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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import docker.errors

from labapp import feedback
from labapp.bench import Bench
from labapp.errors import AttackError, ImageError, LabError, NotInRegistry, RegistryError
from labapp.journey import transfer
from labapp.journey.run import discard, published_url
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.http import same_address
from labapp.registry.manifests import digest_of
from labapp.registry.server import CONTENT
from labapp.state import LABEL, State, write_atomically

if TYPE_CHECKING:
    from docker.models.containers import Container


@dataclass(frozen=True)
class Change:
    """One thing that an attack changes, and the data that is needed to put it back."""

    attack: str
    kind: Literal["file", "tag", "blob", "container", "image"]
    what: str
    data: Mapping[str, str] = field(default_factory=dict)
    number: str = ""

    def __str__(self) -> str:
        return f"{self.kind} '{self.what}'"


class Journal:
    """The changes of all attacks that have not been undone."""

    def __init__(self, state: State) -> None:
        self._state = state

    def note(self, change: Change) -> Change:
        """Write down a change that is about to happen, and return it with its number."""
        change = replace(change, number=str(time.time_ns()))
        self._state.write(f"attacks/{change.number}", asdict(change))
        return change

    def changes(self) -> list[Change]:
        """Return what has not been undone, the oldest first."""
        found = []
        for path in sorted((self._state.folder / "attacks").glob("*.json")):
            with contextlib.suppress(TypeError):  # It is no change.
                found.append(Change(**self._state.read(f"attacks/{path.stem}")))
        return found

    def drop(self, change: Change) -> None:
        """Take a change that was undone from the journal."""
        self._state.path("attacks", f"{change.number}.json").unlink(missing_ok=True)

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
            raise AttackError(
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
    except OSError as error:
        raise AttackError(
            f"putting '{path}' back: {error}. Make the file and its folder writable, then undo "
            "again; or take a new copy of the application with 'fresh=True'."
        ) from error
    return f"removed '{path}'"


def _write(path: Path, content: bytes) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    write_atomically(path, content, mode=mode)


def own_tag(bench: Bench, target: str | None) -> Reference:
    """Return a reference to a tag in the lab's registry, and refuse any other."""
    own = bench.registry.address
    if target is not None:
        tag = Reference.parse(target)
        is_tag = tag.tag is not None and tag.digest is None
        # All chapters build on the bases.
        is_base = tag.repository.startswith("base/")
        if is_tag and not is_base and same_address(tag.registry, own):
            return tag
    raise AttackError(
        f"attacking {target!r}: an attack works on a tag in the lab's own registry, '{own}', and "
        "not on the images in 'base/', of which 'team/base:1' is a copy. Name a tag of your own, "
        f"as in target='{own}/shop/web:1'."
    )


def own_path(bench: Bench, path: Path | str) -> Path:
    """Return a path inside the chapter's work folder, with links followed; refuse any other."""
    work, whole = bench.work.resolve(), Path(path).resolve()
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


def undo(bench: Bench) -> None:
    """Put everything back that attacks changed, the last change first.

    What can't be put back stays in the journal, and is told when all else was.
    """
    journal, failed = Journal(bench.state), []
    for change in reversed(journal.changes()):
        try:
            feedback.say(f"Undone: {_undo(bench, change)}.")
        except LabError as error:
            failed.append(f"  - {change}: {error}")
        else:
            journal.drop(change)
    if failed:
        listed = "\n".join(failed)
        raise AttackError(
            f"undoing the attacks: this could not be put back:\n{listed}\n"
            "Mend the cause, then undo again. 'python3 -m labapp reset' makes everything new."
        )


def _undo(bench: Bench, change: Change) -> str:
    match change.kind:
        case "file":
            return restore_file(change)
        case "tag":
            return _restore_tag(bench, change)
        case "blob":
            # One that was stored anew has that byte already.
            write_byte(bench, change, "before")
            return f"{change} is as it was"
        case "container":
            if container := own_container(bench, change.what):
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
    return f"removed the {change}"


def _restore_tag(bench: Bench, change: Change) -> str:
    """Let a tag name again what it named before, unless it was moved again since."""
    registry, reference = bench.registry, Reference.parse(change.what)
    before, after = change.data["before"], change.data["after"]
    done = f"left '{reference}' alone: the tag has been moved since, or had not been moved yet"
    with contextlib.suppress(NotInRegistry):
        if registry.digest(reference) == after:
            raw, media_type = registry.manifest_bytes(reference.repository, before)
            registry.put_manifest(reference.repository, str(reference.tag), raw, media_type or "")
            done = f"'{reference}' names {before} again"
    with bench.engine.doing(f"looking for the image '{reference}'", AttackError):
        held = bench.engine.image(str(reference))
    if held and change.data["diff_id"] in (held.attrs.get("RootFS") or {}).get("Layers", ()):
        # The engine has pulled the forged one. A container may still use it.
        with contextlib.suppress(ImageError):
            transfer.remove(bench.engine, reference)
    _discard_manifest(registry, reference.repository, after)
    return done


def _discard_manifest(registry: Registry, repository: str, digest: str) -> None:
    """Delete a forged manifest where no tag names it; one that may not be deleted does no harm."""
    with contextlib.suppress(RegistryError):
        tags = registry.tags(repository)
        if digest not in {registry.resolve(repository, tag) for tag in tags}:
            registry.delete_manifest(repository, digest)


def write_byte(bench: Bench, change: Change, which: str) -> None:
    """Write one byte of a blob; dd would make the file of one that is gone by now."""
    script = '[ ! -f "$1" ] || printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null'
    algorithm, _, value = change.data["digest"].partition(":")
    file = f"{CONTENT}/blobs/{algorithm}/{value[:2]}/{value}/data"
    place, byte = change.data["place"], f"\\{change.data[which]}"
    bench.server.storage(["sh", "-c", script, "write", file, place, byte])


def remove_names(bench: Bench, beginning: str, *, of: str | None = None) -> None:
    """Take names from the engine's images, by their beginning or all of one; one in use stays."""
    with bench.engine.doing(f"removing the images '{beginning}…'", AttackError):
        images = bench.engine.client.api.images()
    for image in images:
        for name in [*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())]:
            if name.startswith(beginning) or image["Id"] == of:
                with contextlib.suppress(ImageError):
                    transfer.remove(bench.engine, name)
