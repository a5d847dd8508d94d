"""Pushes: an image goes from the engine to a registry, and is checked there.

The engine does the work; its API answers 200 at once and tells of failures in a stream of events,
so every event is read. A registry on this machine is checked besides, over HTTP: docker reports
success when it pushes over a blob that is damaged in the registry's storage.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import docker.errors
import pandas as pd

from labapp.engine import Engine
from labapp.errors import (
    DamagedContent,
    NotInRegistry,
    PushError,
    RegistryError,
    RegistryUnreachable,
)
from labapp.feedback import Feedback, amount
from labapp.images.transfer import (
    START,
    Login,
    Refused,
    Told,
    checkable,
    is_own,
    listed,
    manifest_for,
    refusal_advice,
    translated,
    with_tag,
)
from labapp.manifests import Descriptor, Manifest, digest_of
from labapp.manifests.fields import FieldError, Fields
from labapp.reference import Reference
from labapp.registry import BlobDamage, Registry
from labapp.registry.server import RegistryServer

SENT, MOUNTED, THERE = "sent", "mounted", "already there"


@dataclass(frozen=True)
class Push:
    """What a push did.

    Attributes:
        reference: the image's name in the registry.
        digest: of the manifest that the registry has now.
        layers: a row a layer, lowest first: ``digest``, ``bytes`` (compressed), ``outcome``
            (``sent``, ``mounted`` from another repository, ``already there``). For a registry that
            is not on this machine, only what the engine tells.
        seconds: how long it took, checks included.
        sent_bytes: compressed bytes of the layers that were sent.
    """

    reference: Reference
    digest: str
    layers: pd.DataFrame = field(repr=False, compare=False)
    seconds: float
    sent_bytes: int


def push(
    engine: Engine,
    server: RegistryServer | None,
    reference: Reference | str,
    *,
    login: Login | None = None,
    feedback: Feedback,
) -> Push:
    """Send an image to its registry, and make sure that all of it arrived.

    Args:
        engine: where the image is.
        server: the lab's registry, where damaged blobs are replaced; None without one.
        reference: the image; ``latest`` where it has no tag.
        login: with which account, for a registry that wants one of the lab's own.
        feedback: where the command and the progress are told.

    Raises:
        InvalidReference: it is no reference.
        PushError: the push failed, or the registry has not got the image whole.
        EngineLost: the engine went away in mid-push.
    """
    reference = with_tag(reference)
    doing = f"pushing '{reference}'"
    if reference.digest is not None:
        raise PushError(
            f"{doing}: a digest can't be pushed, it comes out of the push. Push a tag instead."
        )
    began = time.monotonic()
    words = ("push", str(reference))
    feedback.command(login.command(*words) if login else ["docker", *words])
    registry = login.registry if login else checkable(server, reference, doing, PushError)
    told = _send(engine, registry, reference, login, feedback)
    if registry is None:
        table = _table([(key, None, outcome) for key, outcome in told.outcomes.items()])
        return Push(reference, told.digest, table, time.monotonic() - began, 0)
    damage = _damage_after(engine, registry, reference, told)
    if damage and server is not None and is_own(server, registry):
        feedback.say(
            f"The registry's copy is damaged: {listed(damage)}. "
            "The lab discards what is damaged and pushes again."
        )
        server.discard_blobs([blob.digest for blob in damage])
        told = _send(engine, registry, reference, login, feedback)
        damage = _damage_after(engine, registry, reference, told)
    if damage:
        raise PushError(
            f"{doing}: the engine reports success, but the registry '{registry.address}' has not "
            f"got the image whole: {listed(damage)}. Delete what is damaged from the registry's "
            "storage, then push again: it never writes over a blob that it has."
        )
    with translated(doing, PushError):
        digest, manifest = manifest_for(engine, registry, reference, told.digest)
        config = registry.config(reference.repository, manifest)
    rows: list[tuple[str, int | None, str]] = []
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=False):
        rows.append((layer.digest, layer.size, told.outcome(diff_id, layer.digest) or THERE))
    sent = sum(size or 0 for _, size, outcome in rows if outcome == SENT)
    seconds = time.monotonic() - began
    feedback.say(f"Pushed {reference} in {seconds:.1f} s, {amount(sent)} sent: {digest}")
    return Push(reference, digest, _table(rows), seconds, sent)


def _send(
    engine: Engine,
    registry: Registry | None,
    reference: Reference,
    login: Login | None,
    feedback: Feedback,
) -> Told:
    doing = f"pushing '{reference}'"
    told = Told({"Pushed": SENT, "Layer already exists": THERE, "Mounted from": MOUNTED}, registry)
    # The engine counts the bytes of a layer before it compresses them.
    title = f"Pushing {reference}, layers before compression"
    with engine.doing(doing, PushError), feedback.bars(title) as bars:
        try:
            events = engine.client.api.push(
                reference.name,
                tag=reference.tag,
                stream=True,
                decode=True,
                auth_config=login.auth_config if login else None,
            )
            told.read(events, bars)
        except (docker.errors.APIError, Refused) as error:
            raise _push_error(doing, registry, error) from error
    return told


def _push_error(doing: str, registry: Registry | None, error: Exception) -> PushError:
    cause = " ".join(str(getattr(error, "explanation", None) or error).split())
    if "does not exist" in cause:
        return PushError(
            f"{doing}: the engine has no image of that name. Build it under that name, or give it "
            "to an image with 'docker tag'."
        )
    if advice := refusal_advice(cause):
        return PushError(f"{doing}: {cause}. {advice}")
    if registry is not None:
        try:
            registry.ping()
        except RegistryUnreachable:
            return PushError(
                f"{doing}: the registry '{registry.address}' stopped in mid-push ({cause}). "
                f"{START} Then push again."
            )
        except RegistryError as other:
            return PushError(f"{doing}: {cause}. {other}")
    return PushError(f"{doing}: {cause}. Does the registry have room, and does it allow that name?")


def _damage_after(
    engine: Engine, registry: Registry, reference: Reference, told: Told
) -> list[BlobDamage]:
    """Return what the registry has not got whole after a push.

    What was just sent has been verified by the registry. What it had already has not, so those
    blobs are read: their lengths alone tell nothing, for the engine writes into the manifest
    whatever length the registry says that they have.
    """
    repository = reference.repository
    with translated(f"pushing '{reference}'", PushError):
        try:
            manifest = _pushed_manifest(engine, registry, reference, told)
        except RegistryUnreachable:
            raise
        except RegistryError:
            # A registry may answer with 500 when it can't read its own manifest.
            if not told.digest:
                raise
            return [BlobDamage(told.digest, 0, None, "missing")]
        try:
            diff_ids = registry.config(repository, manifest).diff_ids
            pairs = zip(diff_ids, manifest.layers, strict=False)
            old = tuple(b for diff, b in pairs if told.outcome(diff, b.digest) != SENT)
        except (DamagedContent, NotInRegistry):
            old = manifest.layers
        damage = registry.damaged_blobs(repository, manifest)
        damage += registry.damaged_blobs(repository, replace(manifest, layers=old), contents=True)
    return list({blob.digest: blob for blob in damage}.values())


def _pushed_manifest(
    engine: Engine, registry: Registry, reference: Reference, told: Told
) -> Manifest:
    identifier = told.digest or reference.identifier
    try:
        return manifest_for(engine, registry, reference, identifier)[1]
    except DamagedContent:
        raw, media_type = registry.manifest_bytes(reference.repository, identifier)
    # The length of an emptied blob is left out, as it is 0.
    try:
        fields = Fields.read(raw)
        config, *layers = [
            Descriptor(
                blob.text("mediaType"), blob.needed_text("digest"), int(blob.values.get("size", 0))
            )
            for blob in (fields.object("config"), *fields.objects("layers"))
        ]
    except (FieldError, ValueError) as error:
        raise DamagedContent(f"the manifest {identifier} can't be read: {error}") from error
    return Manifest(media_type or "", config, tuple(layers), {}, raw, digest_of(raw))


def _table(rows: list[tuple[str, int | None, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["digest", "bytes", "outcome"])
