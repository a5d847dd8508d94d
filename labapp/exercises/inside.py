"""What checks read inside images: their contents, their vulnerabilities, and how they answer."""

from __future__ import annotations

import json
import re

import requests

from labapp import contents as image_contents
from labapp import images, vulnerabilities
from labapp.bench import Bench
from labapp.contents import Contents
from labapp.errors import PullError, RunError
from labapp.exercises.exercise import Verdict, correct, wrong
from labapp.feedback import QuietFeedback
from labapp.inspection import CACHE
from labapp.registry.reader import RegistryImage
from labapp.vulnerabilities import Report

_ASKED = {"/price/tea?count=3": {"count": 3, "item": "tea", "total_cents": 678}}
"""What the shop must answer, whatever it was built on."""


_COMPILER = re.compile(r"cc1|cc1plus|.*-linux-(gnu|musl)\w*-(gcc|g\+\+|as|ld).*")


def contents(bench: Bench, held: RegistryImage) -> Contents:
    """Return what is inside an image of the lab's registry."""
    return image_contents.read(
        bench.registry,
        held.reference,
        folder=bench.state.path(CACHE, "layers"),
        feedback=QuietFeedback(),
    )


def report(bench: Bench, held: RegistryImage) -> Report:
    """Return the vulnerabilities that were fixed in an image's packages."""
    return vulnerabilities.known(
        contents(bench, held),
        folder=bench.state.path(CACHE, "vulnerabilities"),
        source="auto",
        feedback=QuietFeedback(),
    )


def compilers(bench: Bench, held: RegistryImage) -> list[str]:
    """Return the compilers in any layer of an image, also those that a later layer deletes."""
    changes = contents(bench, held).changes
    paths = set(changes.loc[changes["bytes"] > 0, "path"])
    return sorted(path for path in paths if _COMPILER.fullmatch(path.rpartition("/")[2]))


def judge_small(bench: Bench, held: RegistryImage, *, limit: int) -> Verdict:
    """Judge an image of the shop by its download, and by running it.

    Args:
        bench: which lab.
        held: the image.
        limit: the bytes that its compressed layers must stay below.
    """
    name, size = f"'{held.reference}'", held.manifest.download_bytes
    if size >= limit:
        return wrong(f"{name} has {size / 1e6:.1f} MB to download; the limit is {limit / 1e6:.1f}.")
    answers = judge_answers(bench, held)
    if answers is not None:
        return wrong(f"{name} is small enough, with {size / 1e6:.1f} MB. But {answers}")
    return correct(
        f"{size / 1e6:.1f} MB to download, and the shop answers as before.",
        evidence={"image": str(held.pinned), "download_bytes": str(size)},
    )


def judge_answers(bench: Bench, held: RegistryImage) -> str | None:
    """Run an image of the shop and ask it.

    Returns:
        What is wrong with its answer, in words; None where it answers as the shop does.
    """
    try:
        shop = images.run(
            bench.engine, held.pinned, labels=bench.state.labels, feedback=QuietFeedback()
        )
    except (RunError, PullError) as error:
        return f"it does not run: {error}"
    try:
        for path, expected in _ASKED.items():
            said = shop.get(path)
            if json.loads(said) != expected:
                return f"to '{path}' it answers {said.strip()[:80]}, not what the shop answers."
    except (RunError, ValueError, requests.RequestException) as error:
        return f"it does not answer as the shop does: {error}"
    finally:
        shop.stop()
    return None
