"""What a delivery came to: the image that the registry got, and the container that runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import docker.errors
from docker.models.containers import Container

from labapp.attacks.targets import service_name
from labapp.bench import Bench
from labapp.contents.streams import opened
from labapp.errors import AttackError, RegistryError, RegistryUnreachable, RunError
from labapp.images.running import published_url, wait_until_ready
from labapp.reference import Reference
from labapp.registry.reader import RegistryImage

ANSWER_SECONDS = 15.0
"""How long what was deployed may take until it answers."""

_PIECE = 4 * 1024 * 1024


@dataclass(frozen=True)
class Deployed:
    """The container that the script left running.

    Attributes:
        name: of the container.
        image: as it was started.
        diff_ids: of its layers before compression, lowest first.
        answers: whether its service answers.
        log: the end of what it has printed.
    """

    name: str
    image: str
    diff_ids: tuple[str, ...] = field(repr=False)
    answers: bool
    log: str = field(repr=False)


@dataclass(frozen=True)
class Pushed:
    """What the script pushed, as it was right after that step.

    Attributes:
        digest: that the registry served for the tag.
        diff_ids: of its layers before compression, lowest first.
        signs: the texts of planted faults that are in it, each with its layer's digest.
    """

    digest: str
    diff_ids: tuple[str, ...] = field(repr=False)
    signs: dict[str, str] = field(repr=False)


def read_pushed(bench: Bench, image: Reference, signs: Iterable[str]) -> Pushed | None:
    """Return what the registry has under a tag; None where it has no image there.

    Args:
        bench: which lab.
        image: the tag.
        signs: the texts to look for in its layers; diff IDs among them are left out, as they are
            known without a look.

    Raises:
        RegistryError: the registry does not answer, or does not have the image whole.
    """
    try:
        held = bench.registry.image(image)
    except RegistryUnreachable:
        raise
    except RegistryError:
        return None
    texts = [sign for sign in signs if sign and not sign.startswith("sha256:")]
    return Pushed(held.digest, held.config.diff_ids, _found(bench, held, texts))


def read_deployed(bench: Bench) -> Deployed | None:
    """Return the container that runs under the service's name, once it answers or won't.

    Raises:
        AttackError: the engine does not tell.
    """
    name = service_name(bench)
    with bench.engine.doing(f"looking for the service '{name}'", AttackError):
        try:
            container = bench.engine.client.containers.get(name)
            answers = _answers(container)
            container.reload()
            if container.status != "running":
                return None
            held = bench.engine.client.images.get(container.attrs["Image"])
        except docker.errors.NotFound:
            return None
        diff_ids = tuple((held.attrs.get("RootFS") or {}).get("Layers") or ())
        image = str(container.attrs["Config"]["Image"])
        return Deployed(
            name, image, diff_ids, answers, container.logs(tail=200).decode("utf-8", "replace")
        )


def _found(bench: Bench, held: RegistryImage, texts: list[str]) -> dict[str, str]:
    """Return which of some texts are in an image's own layers, each with the layer's digest."""
    bases = [bench.registry.image(base.reference).config for base in bench.bases]
    known = {diff_id for base in bases for diff_id in base.diff_ids}
    found: dict[str, str] = {}
    for layer, diff_id in zip(held.manifest.layers, held.config.diff_ids, strict=False):
        if diff_id in known or not texts:
            continue
        blob = bench.registry.open_blob(held.reference.repository, layer.digest)
        doing = f"looking into the layer '{layer.digest}' of '{held.reference}'"
        with opened(blob, diff_id=diff_id, doing=doing) as stream:
            rest = b""
            while piece := stream.read(_PIECE):
                plain = rest + piece
                found |= {t: layer.digest for t in texts if t.encode() in plain and t not in found}
                rest = plain[-200:]  # a text may lie across two pieces
    return found


def _answers(container: Container) -> bool:
    published = [int(port.partition("/")[0]) for port, hosts in container.ports.items() if hosts]
    if not published or published_url(container) is None:
        return False
    try:
        doing = f"waiting for '{container.name}'"
        wait_until_ready(container, published[0], "/", doing=doing, seconds=ANSWER_SECONDS)
    except RunError:
        return False
    return True
