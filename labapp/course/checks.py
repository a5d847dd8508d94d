"""What checks look at: the registry, the engine, and the inside of images that are in the registry.

A check reads facts here, and puts them into sentences itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker.errors
import requests

from labapp import feedback
from labapp.bench import Bench
from labapp.course.exercises import Verdict, correct, not_yet, wrong
from labapp.errors import (
    InvalidReference,
    NotInRegistry,
    PullError,
    RegistryError,
    RegistryUnreachable,
    RunError,
)
from labapp.feedback import Feedback, QuietFeedback
from labapp.journey import run
from labapp.journey.pin import dockerfile_images
from labapp.reference import Reference, is_digest
from labapp.registry.client import RegistryImage

if TYPE_CHECKING:
    from labapp.inside.fixes import Report
    from labapp.inside.image import Contents

LARGEST = 256 * 1024 * 1024
"""The longest layer that is looked into, in bytes; one with a compiler has about 70 MB."""

_ASKED, _ANSWER = "/price/tea?count=3", {"count": 3, "item": "tea", "total_cents": 678}
"""What the shop is asked, and must answer, whatever it was built on."""

_COMPILER = re.compile(r"cc1|cc1plus|.*-linux-(gnu|musl)\w*-(gcc|g\+\+|as|ld).*")


# What the registry holds


def digest(bench: Bench, repository: str, tag: str) -> str | None:
    """Return the digest that the registry serves for a tag; None when there is no such tag."""
    try:
        return bench.registry.resolve(repository, tag)
    except NotInRegistry:
        return None


def image(bench: Bench, repository: str, identifier: str) -> RegistryImage | None:
    """Return an image's manifest and config from the registry; None when there is none."""
    sign = "@" if identifier.startswith("sha256:") else ":"
    try:
        return bench.registry.image(f"{bench.registry.address}/{repository}{sign}{identifier}")
    except RegistryUnreachable:
        raise
    except RegistryError:
        # Asked for a manifest by the digest of a config, the registry fails: it can't read it.
        return None


def given(bench: Bench, name: str) -> RegistryImage:
    """Return an image that the chapter's own cells push, or end the check without it."""
    held = image(bench, *name.split(":"))
    if held is None:
        raise not_yet(f"The registry has no '{name}' yet. Run the cells above first.")
    return held


def pushed(bench: Bench, name: str) -> RegistryImage:
    """Return an image that the learner is to push, or end the check without it."""
    held = image(bench, *name.split(":"))
    if held is None and on_engine(bench, name):
        raise wrong(f"'{name}' is on the engine, but not in the registry: push it.")
    if held is None:
        raise not_yet(f"The registry has no '{name}' yet.")
    return held


def answered(answer: object, wanted: str) -> str:
    """Return an answer that is to be a text, or end the check without it."""
    if answer is ...:
        raise not_yet(f"No answer yet: replace the ... with {wanted}.")
    if not isinstance(answer, str):
        raise wrong(f"The answer is of type {type(answer).__name__}. Expected: a text.")
    return answer.strip()


def check_form(answer: str, right: str) -> None:
    """End the check where an answer is not written as a digest, be it right or not."""
    if f"sha256:{answer}" == right:
        raise wrong("The digits are right. A digest says which algorithm made it, in front.")
    if not is_digest(answer):
        raise wrong(f"'{answer[:24]}' is no digest: expected 'sha256:' and 64 hexadecimal digits.")


def pinned(bench: Bench, repository: str, digest: str) -> str:
    """Return an image of the lab's registry by digest, as receipts name it."""
    return f"{bench.registry.address}/{repository}@{digest}"


def short(digest: str | None) -> str:
    """Return a digest as messages quote it: ``sha256:`` and eight digits."""
    return digest[: len("sha256:") + 8] + "…" if digest else "nothing"


def pinned_images(file: Path) -> list[Reference]:
    """Return what a Dockerfile starts or copies from, or end the check if a tag is trusted."""
    name = f"'{file.parent.name}/{file.name}'"
    try:
        named = [Reference.parse(text) for text in dockerfile_images(file)]
    except InvalidReference as error:
        raise wrong(f"The FROM line can't be read: {error}") from error
    if not named:
        raise wrong(f"{name} has no FROM line any more that names an image.")
    loose = [reference for reference in named if reference.digest is None]
    if loose == named:
        raise not_yet(f"The FROM line still trusts a tag: '{loose[0]}'.")
    if loose:
        raise wrong(
            f"One image in {name} is pinned, another still trusted by its tag: '{loose[0]}'"
        )
    return named


def built_on(bench: Bench, name: str, base: RegistryImage) -> RegistryImage:
    """Return an image that is to be built on another one, or end the check where it was not."""
    held = image(bench, *name.split(":"))
    if held is None:
        raise wrong(f"The FROM line is pinned. Now build '{name}' from it, and push it.")
    if held.manifest.digest == base.manifest.digest:
        raise wrong(f"'{name}' is the base itself. Build it from 'page/Dockerfile'.")
    diff_ids = base.config.diff_ids  # which stay, however the layers were packed
    if held.config.diff_ids[: len(diff_ids)] != diff_ids:
        raise wrong(f"'{name}' stands on other layers than '{base.reference}'. Build it again.")
    return held


# What the engine holds and runs


def on_engine(bench: Bench, name: str) -> bool:
    """Say whether the engine has an image under a name, such as ``hello/web:mine``."""
    with bench.engine.doing(f"looking for the image '{name}'"):
        return bench.engine.image(f"{bench.registry.address}/{name}") is not None


def containers(bench: Bench) -> list[dict[str, Any]]:
    """Return what the engine says of each container that was started from this lab's registry."""
    api = bench.engine.client.api
    found = []
    with bench.engine.doing("looking for containers"):
        for listed in api.containers(all=True):
            with contextlib.suppress(docker.errors.NotFound):
                container = api.inspect_container(listed["Id"])
                if container["Config"]["Image"].startswith(f"{bench.registry.address}/"):
                    found.append(container)
    return found


def quietly() -> AbstractContextManager[Feedback]:
    """Say nothing of what a check does to find out: it is not the learner's doing."""
    return feedback.using(QuietFeedback())


def run_once(bench: Bench, reference: object, command: list[str]) -> str:
    """Run one command in a new container of an image, and return what it printed."""
    with quietly():
        return run.run_once(bench.engine, str(reference), command)


# What is inside an image


def layers(bench: Bench, held: RegistryImage) -> Iterator[bytes]:
    """Yield the unpacked layers, lowest first, that an image adds to the lab's base images."""
    from labapp.inside.archive import opened

    # An engine may pack a layer anew when it pushes: only the diff ID stays.
    below = [bench.registry.image(base.reference).config.diff_ids for base in bench.bases]
    for layer, diff_id in zip(held.manifest.layers, held.config.diff_ids, strict=False):
        if not any(diff_id in known for known in below):
            blob = bench.registry.open_blob(held.reference.repository, layer.digest)
            doing = f"looking into the layer '{layer.digest}' of '{held.reference}'"
            with opened(blob, diff_id=diff_id, doing=doing) as stream:
                yield stream.read(LARGEST)


def entries(layer: bytes) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield each path in an unpacked layer, and what reads its content while it is the current one.

    A layer that is no archive, such as a builder's note on how it built, has none.
    """
    with (
        contextlib.suppress(tarfile.TarError),
        tarfile.open(fileobj=io.BytesIO(layer), mode="r:") as archive,
    ):
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            yield "/" + member.name.removeprefix("./").lstrip("/"), file.read if file else bytes


def added(bench: Bench, held: RegistryImage) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield what an image adds to the lab's base images, as :func:`entries` does."""
    for layer in layers(bench, held):
        yield from entries(layer)


def contents(bench: Bench, held: RegistryImage) -> Contents:
    """Return the files and packages of an image of the lab's registry."""
    from labapp.inside import image
    from labapp.inside.inspection import CACHE

    folder = bench.state.path(CACHE, "layers")
    with quietly():
        return image.read(bench.registry, held.reference, folder=folder)


def report(bench: Bench, held: RegistryImage) -> Report:
    """Return the vulnerabilities that were fixed in an image's packages."""
    from labapp.inside import known as vulnerabilities
    from labapp.inside.inspection import CACHE

    folder, found = bench.state.path(CACHE, "vulnerabilities"), contents(bench, held)
    with quietly():
        return vulnerabilities.known(found, folder=folder, source="auto")


def compilers(bench: Bench, held: RegistryImage) -> list[str]:
    """Return the compilers in any layer of an image, also those that a later layer deletes."""
    changes = contents(bench, held).changes
    paths = set(changes.loc[changes["bytes"] > 0, "path"])
    return sorted(path for path in paths if _COMPILER.fullmatch(path.rpartition("/")[2]))


# Whether an image is the shop


def judge_small(bench: Bench, held: RegistryImage, *, limit: int) -> Verdict:
    """Judge an image of the shop by its download, below a limit in bytes, and by running it."""
    size = held.manifest.download_bytes
    if size >= limit:
        raise wrong(
            f"'{held.reference}' has {size / 1e6:.1f} MB to download; the limit is "
            f"{limit / 1e6:.1f}."
        )
    check_answers(bench, held, f"'{held.reference}' is small enough, with {size / 1e6:.1f} MB.")
    return correct(
        f"{size / 1e6:.1f} MB to download, and the shop answers as before.",
        image=held.pinned,
        download_bytes=size,
    )


def check_answers(bench: Bench, held: RegistryImage, said: str) -> None:
    """Run an image and ask it; end the check where it does not answer as the shop does."""
    try:
        with quietly():
            shop = run.run(bench.engine, held.pinned)
    except (RunError, PullError) as error:
        raise wrong(f"{said} But it does not run: {error}") from error
    try:
        text = shop.get(_ASKED)
        if json.loads(text) != _ANSWER:
            raise wrong(
                f"{said} But to '{_ASKED}' it answers {text.strip()[:80]}, not what the shop "
                "answers."
            )
    except (RunError, ValueError, requests.RequestException) as error:
        raise wrong(f"{said} But it does not answer as the shop does: {error}") from error
    finally:
        shop.stop()
