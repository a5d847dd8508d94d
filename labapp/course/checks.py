"""What checks look at: the registry, the engine, and the inside of images in the registry."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labapp import feedback
from labapp.attacks.attacks import unpacked_layers
from labapp.bench import Bench
from labapp.course.exercises import NotYet, Verdict, Wrong, correct
from labapp.errors import (
    BuildError,
    DamagedContent,
    DeploymentError,
    ImageError,
    InvalidReference,
    NotInRegistry,
    RegistryError,
    RegistryUnreachable,
)
from labapp.feedback import QuietFeedback
from labapp.inside.archive import walk
from labapp.inside.inspection import CACHE
from labapp.journey import build, run, transfer
from labapp.journey.bases import SLIM
from labapp.journey.deploy import read_deployment
from labapp.journey.pin import dockerfile_images
from labapp.reference import Reference, is_digest
from labapp.registry.client import RegistryImage

if TYPE_CHECKING:
    from labapp.inside.image import Contents
    from labapp.inside.known import Report

CHECK = "labapp/check"
"""Where a check builds to, for as long as it looks."""

_SECRET = re.compile(r"--mount=(?=\S*type=secret)\S*?\bid=([\w.-]+)")

_COMPILED = re.compile(r"/shop/_prices[^/]*\.so")
"""The part of the shop that was written in C, as a build leaves it."""


def written(bench: Bench, name: str) -> Path:
    """Return a file that the chapter's own cells write, or end the check without it."""
    file = bench.work / name
    if not file.is_file():
        raise NotYet(f"'work/{bench.work.name}/{name}' is missing. Run the cells above first.")
    return file


def digest(bench: Bench, name: str) -> str | None:
    """Return the digest that the registry serves for a tag; None when there is no such tag."""
    try:
        return bench.registry.resolve(*name.split(":"))
    except NotInRegistry:
        return None


def digests(bench: Bench, name: str) -> tuple[str, ...]:
    """Return all digests that a tag's image can be pinned to; none when there is no such tag."""
    try:
        return _image(bench, name).digests
    except NotInRegistry:
        return ()


def given(bench: Bench, name: str) -> RegistryImage:
    """Return an image that the chapter's own cells push, or end the check without it."""
    try:
        return _image(bench, name)
    except NotInRegistry as error:
        raise NotYet(f"The registry has no '{name}' yet. Run the cells above first.") from error


def pushed(
    bench: Bench, name: str, *, missing: type[NotYet] | type[Wrong] = NotYet
) -> RegistryImage:
    """Return an image that the learner is to push, or end the check without it."""
    try:
        return _image(bench, name)
    except NotInRegistry as error:
        if on_engine(bench, name):
            raise Wrong(f"'{name}' is on the engine, but not in the registry: push it.") from error
        raise missing(f"'{name}' was not pushed yet: {error}") from error


def _image(bench: Bench, name: str) -> RegistryImage:
    try:
        return bench.registry.image(f"{bench.registry.address}/{name}")
    except (NotInRegistry, RegistryUnreachable):
        raise
    except RegistryError as error:
        raise Wrong(f"'{name}' is in the registry, but can't be read: {error}") from error


def answered(answer: object, wanted: str, *kinds: type) -> Any:
    """Return an answer of one of these kinds, by default a text, or end the check without it."""
    if answer is ...:
        raise NotYet(f"No answer yet: replace the ... with {wanted}.")
    if not isinstance(answer, kinds or str):
        raise Wrong(f"The answer is of type {type(answer).__name__}. Expected: {wanted}.")
    return answer.strip() if isinstance(answer, str) else answer


def check_form(answer: str) -> None:
    """End the check where an answer is not written as a digest, be it right or not."""
    if not is_digest(answer):
        raise Wrong(f"'{answer[:24]}' is no digest: expected 'sha256:' and 64 hexadecimal digits.")


def short(digest: str | None) -> str:
    """Return a digest as messages quote it: ``sha256:`` and eight digits."""
    return digest[: len("sha256:") + 8] + "…" if digest else "nothing"


def pinned_images(file: Path) -> list[Reference]:
    """Return what a Dockerfile starts or copies from, or end the check if a tag is trusted."""
    name = f"'{file.parent.name}/{file.name}'"
    try:
        named = [Reference.parse(text) for text in dockerfile_images(file)]
    except InvalidReference as error:
        raise Wrong(f"The FROM line can't be read: {error}") from error
    if not named:
        raise Wrong(f"{name} has no FROM line any more that names an image.")
    loose = [reference for reference in named if reference.digest is None]
    if loose:
        unmet = NotYet if loose == named else Wrong
        raise unmet(f"{name} still trusts a tag: '{loose[0]}'.")
    return named


def services(file: Path) -> dict[str, Reference]:
    """Return what a deployment file's services run, 'web' among them, or end the check."""
    try:
        images = {each.name: Reference.parse(each.image) for each in read_deployment(file)}
    except (DeploymentError, InvalidReference) as error:
        raise Wrong(f"'{file.name}' can't be used as it is: {error}") from error
    if "web" not in images:
        raise Wrong(f"'{file.name}' has no service 'web' any more: the shop is to run.")
    return images


def built_on(bench: Bench, name: str, base: RegistryImage, file: Path) -> RegistryImage:
    """Return an image that a Dockerfile is to build on another one, or end the check."""
    held = pushed(bench, name, missing=Wrong)
    if held.manifest.digest == base.manifest.digest:
        raise Wrong(f"'{name}' is the base itself. Build it from 'page/Dockerfile'.")
    diff_ids = base.config.diff_ids  # which stay, however the layers were packed
    if held.config.diff_ids[: len(diff_ids)] != diff_ids:
        raise Wrong(f"'{name}' stands on other layers than '{base.reference}'. Build it again.")
    with trial(bench, file.parent) as tag, bench.engine.doing("looking at what was built"):
        made = bench.engine.image(tag)
        if made is None or tuple(made.attrs["RootFS"]["Layers"][: len(diff_ids)]) != diff_ids:
            raise Wrong(
                f"'page/Dockerfile' names '{base.reference}', but the last stage stands on other "
                "layers."
            )
    return held


@contextlib.contextmanager
def trial(
    bench: Bench, folder: Path, change: Callable[[Path], object] = lambda copy: None
) -> Iterator[str]:
    """Build a copy of a learner's folder, perhaps with a change in it; yield its name for a while.

    It has a repository of its own: a manifest goes with all its tags, and may be the learner's.
    """
    tag = f"{bench.registry.address}/{CHECK}:{folder.name}"
    try:
        with tempfile.TemporaryDirectory() as temporary, quietly():
            copy = Path(shutil.copytree(folder, Path(temporary) / folder.name, symlinks=True))
            change(copy)
            file = copy / "Dockerfile"
            # A password that a step mounts is in the file that the chapter wrote.
            text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
            secrets = {id: copy / ".env" for id in _SECRET.findall(text)}
            args = bench.build_arguments(file)
            # What is in a mounted secret does not count for BuildKit's cache.
            cache = not secrets
            build.build(bench.engine, copy, tag=tag, args=args, secrets=secrets, cache=cache)
        yield tag
    except BuildError as error:
        raise Wrong(f"The check can't build '{folder.name}/Dockerfile' again: {error}") from error
    finally:
        transfer.remove(bench.engine, tag)
        with contextlib.suppress(RegistryError):
            bench.registry.delete_manifest(CHECK, bench.registry.digest(tag))


def sent(bench: Bench, tag: str) -> RegistryImage:
    """Push what a trial has built, to look at its layers."""
    with quietly():
        transfer.push(bench.engine, bench.server, tag)
    return bench.registry.image(tag)


def on_engine(bench: Bench, name: str) -> bool:
    """Say whether the engine has an image under a name, such as ``hello/web:mine``."""
    with bench.engine.doing(f"looking for the image '{name}'"):
        return bench.engine.image(f"{bench.registry.address}/{name}") is not None


def containers(bench: Bench) -> list[dict[str, Any]]:
    """Return what the engine says of each container that was started from this lab's registry."""
    with bench.engine.doing("looking for containers"):
        found = bench.engine.client.containers.list(all=True, ignore_removed=True)
    own = f"{bench.registry.address}/"
    return [each.attrs for each in found if each.attrs["Config"]["Image"].startswith(own)]


def quietly() -> AbstractContextManager[QuietFeedback]:
    """Say nothing of what a check does to find out: it is not the learner's doing."""
    return feedback.using(QuietFeedback())


def run_once(bench: Bench, reference: object, command: list[str]) -> str:
    """Run one command in a new container of an image, and return what it printed."""
    with quietly():
        return run.run_once(bench.engine, str(reference), command)


def entries(layer: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield each path in an unpacked layer, and the content of what is a file.

    A layer that is no archive, such as a builder's note on how it built, has none.
    """
    stream = io.BytesIO(layer)
    with contextlib.suppress(DamagedContent):
        for entry in walk(stream, doing="looking into a layer"):
            yield entry.path, stream.read(entry.stored)


def added(bench: Bench, held: RegistryImage) -> Iterator[tuple[str, bytes]]:
    """Yield what an image adds to the lab's base images, as :func:`entries` does."""
    for _, layer in unpacked_layers(bench, held):
        yield from entries(layer)


def contents(bench: Bench, held: RegistryImage) -> Contents:
    """Return the files and packages of an image of the lab's registry."""
    from labapp.inside import image

    with quietly():
        return image.read(bench.registry, held, folder=bench.state.path(CACHE, "layers"))


def report(bench: Bench, held: RegistryImage) -> Report:
    """Return the vulnerabilities that were fixed in an image's packages."""
    from labapp.inside.known import known

    with quietly():
        return known(contents(bench, held), folder=bench.state.path(CACHE, "vulnerabilities"))


def judge_small(bench: Bench, name: str, *, times: float) -> Verdict:
    """Judge an image of the shop: does it run, with less than some times the slim base's bytes?

    They are counted unpacked: how far a layer is compressed depends on who did it.
    """
    held = pushed(bench, name)
    size = contents(bench, held).unpacked_bytes
    base = bench.registry.image(bench.base(SLIM))
    limit = int(times * contents(bench, base).unpacked_bytes)
    there = f"{size / 1e6:.1f} MB unpacked"
    if size >= limit:
        raise Wrong(f"'{held.reference}' has {there}; the limit is {limit / 1e6:.1f}.")
    check_answers(bench, held, f"'{held.reference}' is small enough, with {there}.")
    check_compiled(bench, held)
    said = f"{there}, and the shop answers as before."
    return correct(said, image=held.pinned, unpacked_bytes=size)


def check_answers(bench: Bench, held: RegistryImage, said: str) -> None:
    """Run an image and ask it; end the check where it does not answer as the shop does.

    The questions are others at each check, so that nobody knows the answers beforehand.
    """
    source = (bench.application / "shop" / "app.py").read_text(encoding="utf-8")
    prices = [(item, int(cents)) for item, cents in re.findall(r'"(\w+)": (\d+)', source)]
    try:
        with quietly():
            shop = run.run(bench.engine, held.pinned)
        try:
            for item, cents in random.sample(prices, 3):
                count = random.randint(2, 1000)
                asked = f"/price/{item}?count={count}"
                wanted = {"count": count, "item": item}
                wanted["total_cents"] = (count * cents * 119 + 50) // 100
                if (answer := json.loads(shop.get(asked))) != wanted:
                    raise Wrong(f"{said} But to '{asked}' it answers {answer!r:.80}, not {wanted}.")
        finally:
            shop.stop()
    except (ImageError, ValueError) as error:
        raise Wrong(f"{said} But it does not run and answer as the shop does: {error}") from error


def check_compiled(bench: Bench, held: RegistryImage) -> None:
    """End the check where an image answers as the shop does without the shop's part in C."""
    for path, content in added(bench, held):
        if _COMPILED.search(path) and b"PyInit__prices" in content:
            return
    raise Wrong(
        f"'{held.reference}' answers, but no layer has the shop's part that is compiled from "
        "'shop/_prices.c'. Is it the shop?"
    )
