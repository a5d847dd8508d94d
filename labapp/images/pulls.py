"""Pulls: an image comes from a registry to the engine.

A registry on this machine is asked first whether it has all of the image: the engine would try for
over a minute before it gives up on a blob that is missing or cut short.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

import docker.errors
import pandas as pd

from labapp.engine import Engine
from labapp.errors import PullError
from labapp.feedback import Feedback, amount
from labapp.images.transfer import (
    Login,
    Refused,
    Told,
    checkable,
    listed,
    manifest_for,
    refusal_advice,
    translated,
    with_tag,
)
from labapp.reference import Reference
from labapp.registry.server import RegistryServer

FETCHED, HERE = "fetched", "already here"

_UNFIT = re.compile("layers from manifest don't match|wrong diff ?id")
_ALTERED = re.compile(
    r"(?:verification failed for digest |unexpected commit digest \S+ expected )"
    r"(sha256:[0-9a-f]{64})"
)


@dataclass(frozen=True)
class Pull:
    """What a pull did.

    Attributes:
        reference: the image's name in the registry.
        digest: that the registry served for it.
        layers: a row a layer, lowest first: ``digest``, ``bytes`` (compressed), ``outcome``
            (``fetched`` or ``already here``).
        seconds: how long it took, checks included.
    """

    reference: Reference
    digest: str
    layers: pd.DataFrame = field(repr=False, compare=False)
    seconds: float


def pull(
    engine: Engine,
    server: RegistryServer | None,
    reference: Reference | str,
    *,
    login: Login | None = None,
    feedback: Feedback,
) -> Pull:
    """Fetch an image from its registry.

    What is damaged in a registry on this machine is named before the engine starts to try.

    Args:
        engine: where the image goes.
        server: the lab's registry; None without one.
        reference: the image, by tag or digest; ``latest`` where it has neither.
        login: with which account, for a registry that wants one of the lab's own.
        feedback: where the command and the progress are told.

    Raises:
        InvalidReference: it is no reference.
        PullError: there is no such image, or it is damaged, or the pull failed.
        EngineLost: the engine went away in mid-pull.
    """
    reference = with_tag(reference)
    doing = f"pulling '{reference}'"
    began = time.monotonic()
    words = ("pull", str(reference))
    feedback.command(login.command(*words) if login else ["docker", *words])
    registry = login.registry if login else checkable(server, reference, doing, PullError)
    if registry is not None:
        with translated(doing, PullError):
            _, manifest = manifest_for(engine, registry, reference, reference.identifier)
            damage = registry.damaged_blobs(reference.repository, manifest)
        if damage:
            raise PullError(
                f"{doing}: the registry has not got the image whole: {listed(damage)}. "
                "Push it again from where it was built: the lab then replaces what is damaged."
            )
    told = Told({"Pull complete": FETCHED, "Already exists": HERE}, registry)
    with engine.doing(doing, PullError), feedback.bars(doing.replace("'", "")) as bars:
        try:
            events = engine.client.api.pull(
                reference.name,
                tag=reference.identifier,
                stream=True,
                decode=True,
                auth_config=login.auth_config if login else None,
            )
            told.read(events, bars)
            if not told.outcomes:
                bars.finish("all layers", HERE)
        except (docker.errors.APIError, Refused) as error:
            raise _pull_error(doing, error) from error
    if registry is None:
        table = _table([(key, None, outcome) for key, outcome in told.outcomes.items()])
        return Pull(reference, told.digest, table, time.monotonic() - began)
    with translated(doing, PullError):
        # What the engine got, even if the tag has moved since.
        wanted = told.digest or reference.identifier
        digest, manifest = manifest_for(engine, registry, reference, wanted)
    rows: list[tuple[str, int | None, str]] = [
        (each.digest, each.size, told.outcome(each.digest) or HERE) for each in manifest.layers
    ]
    fetched = sum(size or 0 for _, size, outcome in rows if outcome == FETCHED)
    seconds = time.monotonic() - began
    feedback.say(f"Pulled {reference} in {seconds:.1f} s, {amount(fetched)} fetched: {digest}")
    return Pull(reference, digest, _table(rows), seconds)


def _pull_error(doing: str, error: Exception) -> PullError:
    cause = str(getattr(error, "explanation", None) or error)
    altered = _ALTERED.search(cause)
    if altered:
        return PullError(
            f"{doing}: blob {altered[1]} has been altered in the registry; the engine refuses it, "
            "for its bytes do not match its digest. Push the image again from where it was built: "
            "the lab then replaces what is damaged."
        )
    if _UNFIT.search(cause):
        return PullError(
            f"{doing}: {cause}. The layers are not those that the image's config promises by their "
            "diff IDs: somebody has put it together wrongly. Build and push it again."
        )
    advice = refusal_advice(cause) or "Check the name and the tag, and that the registry runs."
    return PullError(f"{doing}: {cause}. {advice}")


def _table(rows: list[tuple[str, int | None, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["digest", "bytes", "outcome"])
