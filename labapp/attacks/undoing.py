"""The undo: everything in the journal is put back, the last change first."""

from __future__ import annotations

import contextlib

import docker.errors

from labapp import images
from labapp.attacks import targets
from labapp.attacks.changes import discard_manifest, restore_blob, restore_tag
from labapp.attacks.journal import Change, Journal, restore_file
from labapp.bench import Bench
from labapp.errors import AttackError, LabError, NotInRegistry, RegistryError
from labapp.feedback import Feedback
from labapp.images.running import discard, published_url
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.registry.addresses import same_address


def undo(bench: Bench, *, registry: Registry | None = None, feedback: Feedback) -> list[str]:
    """Put everything back that attacks changed; what changed again since is left alone.

    It does no harm where nothing was attacked, and goes on where an earlier undo was cut off.

    Args:
        bench: which lab.
        registry: the client of another registry of this lab where a tag was moved, such as the one
            with accounts: with the rights to move it back.
        feedback: where it is told.

    Returns:
        What was done, a line a change.

    Raises:
        AttackError: something could not be put back; the rest was, and it stays in the journal.
    """
    journal, done, failed = Journal(bench.state), [], []
    for change in reversed(journal.changes()):
        try:
            done.append(_undo(bench, change, registry))
        except LabError as error:
            failed.append(f"{change}: {error}")
            continue
        journal.drop(change)
        feedback.say(f"Undone: {done[-1]}.")
    if failed:
        listed = "\n".join(f"  - {line}" for line in failed)
        raise AttackError(
            f"undoing the attacks: this could not be put back:\n{listed}\n"
            "Mend the cause, then undo again. 'python3 -m labapp reset' makes everything new."
        )
    return done


def _undo(bench: Bench, change: Change, registry: Registry | None) -> str:
    if change.kind == "file":
        return restore_file(change)
    if change.kind == "tag":
        address = change.data.get("registry")
        if address and not targets.is_served(bench, address):
            return f"'{change.what}' is gone with its registry"
        return restore_tag(bench, change, registry=_registry(bench, change, registry))
    if change.kind == "blob":
        return restore_blob(bench, change)
    if change.kind == "image":
        return _remove_image(bench, change)
    return _remove_container(bench, change)


def _registry(bench: Bench, change: Change, registry: Registry | None) -> Registry:
    address = change.data.get("registry")
    if address is None:
        return bench.registry
    if registry is not None and same_address(registry.address, address):
        return registry
    raise RegistryError(
        f"moving the tag '{change.what}' back: the registry '{address}' wants an account. Undo "
        "with the client of one that may push there."
    )


def _remove_container(bench: Bench, change: Change) -> str:
    if targets.own_container(bench, change.what):
        url = ""
        with (
            bench.engine.doing(f"removing the container '{change.what}'", AttackError),
            contextlib.suppress(docker.errors.NotFound),
        ):
            container = bench.engine.client.containers.get(change.what)
            url = published_url(container) or ""
            discard(container)
        # Nothing answers any more at the names that came through a mirror.
        remove_names(bench, f"localhost:{url.rpartition(':')[2]}/")
    if after := change.data.get("after"):
        discard_manifest(bench.registry, change.data["repository"], after)
    return f"removed the container '{change.what}'"


def remove_names(bench: Bench, beginning: str) -> None:
    """Take the names with a certain beginning from the engine's images; one in use stays."""
    api = bench.engine.client.api
    with bench.engine.doing(f"removing the images '{beginning}…'", AttackError):
        for image in api.images():
            for name in [*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())]:
                if name.startswith(beginning):
                    with contextlib.suppress(docker.errors.APIError):
                        api.remove_image(name)


def _remove_image(bench: Bench, change: Change) -> str:
    """Take an image that an attack made from the engine and from the registry."""
    reference = Reference.parse(change.what)
    images.remove(bench.engine, reference)
    with contextlib.suppress(NotInRegistry):
        digest = bench.registry.resolve(reference.repository, str(reference.tag))
        bench.registry.delete_manifest(reference.repository, digest)
    return f"removed the image '{reference}'"
