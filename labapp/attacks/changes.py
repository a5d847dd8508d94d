"""The changes that attacks make in the registry: each noted in the journal, done, and undone."""

from __future__ import annotations

import contextlib

import docker.errors

from labapp import images
from labapp.attacks.forging import Forged, forge
from labapp.attacks.journal import Change, Journal
from labapp.attacks.targets import own_tag
from labapp.bench import Bench
from labapp.errors import AttackError, LabError, NotInRegistry, RegistryError
from labapp.manifests import Descriptor
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.registry.copies import put_image
from labapp.registry.storage import CONTENT

_READ = 'dd if="$1" bs=1 skip="$2" count=1 2>/dev/null | od -An -tx1'
_WRITE = 'printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null'


def move_tag(
    bench: Bench,
    attack: str,
    reference: Reference,
    *,
    registry: Registry | None = None,
    occasion: str = "",
) -> tuple[Forged, dict[str, str]]:
    """Let a tag name a forged image.

    Args:
        bench: which lab.
        attack: the attack's id.
        reference: the tag, checked by :func:`own_tag`.
        registry: where it is, if not in the lab's open one.
        occasion: goes into the image, so that its digest is that of this occasion only.

    Returns:
        The forged image, and what gives it away: the digests before and now, and the layer's.

    Raises:
        NotInRegistry: there is no such tag.
        RegistryError: the registry does not allow it; the tag is as before.
    """
    where, journal = registry or bench.registry, Journal(bench.state)
    forged = forge(bench, reference, attack, registry=registry, occasion=occasion)
    before, after = where.resolve(reference.repository, str(reference.tag)), forged.manifest.digest
    data = {"before": before, "after": after, "diff_id": forged.diff_ids[-1]}
    if registry is not None:
        data["registry"] = registry.address
    change = journal.note(Change(attack, "tag", str(reference), data))
    try:
        forged.upload(where, str(reference.tag))
    except LabError:
        # Refused, or broken off: the undo finds out which, and does what is needed.
        with contextlib.suppress(LabError):
            restore_tag(bench, change, registry=where)
            journal.drop(change)
        raise
    evidence = {"digest before": before, "digest now": after, "layer": forged.layer.digest}
    return forged, evidence


def alter_blob(bench: Bench, attack: str, reference: Reference) -> Change:
    """Change one byte of an image's largest layer, in the registry's own files.

    Args:
        bench: which lab.
        attack: the attack's id.
        reference: the image, checked by :func:`own_tag`.

    Raises:
        NotInRegistry: there is no such image.
        AttackError: all its layers belong to the lab's base images.
    """
    layer = own_layer(bench, reference)
    place = str(layer.size // 2)
    printed = bench.server.storage(["sh", "-c", _READ, "read", _file(layer.digest), place]).strip()
    try:
        before = int(printed, 16)
    except ValueError as error:
        raise AttackError(
            f"altering the blob '{layer.digest}': its file says {printed!r}. Push '{reference}' "
            "again, then try again."
        ) from error
    data = {"digest": layer.digest, "place": place, "before": f"{before:03o}"}
    data["after"] = f"{before ^ 0xFF:03o}"
    change = Journal(bench.state).note(Change(attack, "blob", layer.digest, data))
    _write_byte(bench, change, "after")
    return change


def own_layer(bench: Bench, reference: Reference) -> Descriptor:
    """Return the largest layer of an image that no base image of the lab has.

    Raises:
        NotInRegistry: there is no such image.
        AttackError: all its layers belong to the lab's base images.
    """
    bases = [bench.registry.image(base.reference) for base in bench.bases]
    # By the content of the layers: an engine may pack one anew when it pushes.
    shared = {digest for base in bases for digest in base.config.diff_ids}
    shared |= {layer.digest for base in bases for layer in base.manifest.layers}
    held = bench.registry.image(reference)
    layers = zip(held.manifest.layers, held.config.diff_ids, strict=False)
    own = [layer for layer, diff_id in layers if not {layer.digest, diff_id} & shared]
    if not own:
        raise AttackError(
            f"altering a layer of '{reference}': all of them are in the lab's base images, which "
            "stay as they are. Take an image that adds a layer of its own."
        )
    return max(own, key=lambda layer: layer.size)


def copy_base(bench: Bench, *, repository: str = "team/base", tag: str = "1") -> Reference:
    """Give the lab's slim base image a second name in the registry, for attacks to work on.

    Returns:
        The reference by tag.

    Raises:
        AttackError: the name is that of the lab's own base images.
    """
    reference = own_tag(bench, Reference(bench.registry.address, repository, tag))
    held = bench.registry.image(bench.base("python:3.13-slim"))
    for blob in held.manifest.blobs:
        bench.registry.mount_blob(repository, blob.digest, held.reference.repository)
    put_image(bench.registry, repository, tag, held.manifest)
    return reference


def restore_tag(bench: Bench, change: Change, *, registry: Registry | None = None) -> str:
    """Let a tag name again what it named before, unless it was moved again since.

    The engine forgets the name where it has the forged image under it.

    Args:
        bench: which lab.
        change: from the journal.
        registry: where it is, if not in the lab's open one.

    Returns:
        What was done, in words.

    Raises:
        RegistryError: the registry does not answer, or does not allow it.
    """
    where, reference = registry or bench.registry, Reference.parse(change.what)
    repository, tag = reference.repository, str(reference.tag)
    before, after = change.data["before"], change.data["after"]
    done = f"left '{reference}' alone: the tag has been moved since, or had not been moved yet"
    with contextlib.suppress(NotInRegistry):
        if where.resolve(repository, tag) == after:
            raw, media_type = where.manifest_bytes(repository, before)
            where.put_manifest(repository, tag, raw, media_type or "")
            done = f"'{reference}' names {before} again"
    forget_forged(bench, change)
    discard_manifest(where, repository, after)
    return done


def restore_blob(bench: Bench, change: Change) -> str:
    """Put a byte of a blob back; a blob that was stored anew has that byte already.

    Raises:
        RegistryError: the registry's files can't be worked on.
    """
    _write_byte(bench, change, "before")
    return f"blob {change.data['digest']} is as it was"


def discard_manifest(registry: Registry, repository: str, digest: str) -> None:
    """Delete a forged manifest where no tag names it; one that may not be deleted does no harm."""
    with contextlib.suppress(RegistryError):
        tags = registry.tags(repository)
        if digest not in {registry.resolve(repository, tag) for tag in tags}:
            registry.delete_manifest(repository, digest)


def forget_forged(bench: Bench, change: Change) -> None:
    """Take the attacked name from the engine's image if that image has the forged layer."""
    with bench.engine.doing(f"looking for the image '{change.what}'", AttackError):
        try:
            held = bench.engine.client.images.get(change.what)
        except docker.errors.ImageNotFound:
            return
    if change.data["diff_id"] in (held.attrs.get("RootFS") or {}).get("Layers", ()):
        # A container may still use it.
        with contextlib.suppress(LabError):
            images.remove(bench.engine, change.what)


def _file(digest: str) -> str:
    """Return where the registry keeps a blob."""
    algorithm, _, value = digest.partition(":")
    return f"{CONTENT}/blobs/{algorithm}/{value[:2]}/{value}/data"


def _write_byte(bench: Bench, change: Change, which: str) -> None:
    byte = f"\\{change.data[which]}"
    path = _file(change.data["digest"])
    # dd would make the file of a blob that is gone by now.
    script = f'[ ! -f "$1" ] || {{ {_WRITE}; }}'
    bench.server.storage(["sh", "-c", script, "write", path, change.data["place"], byte])
