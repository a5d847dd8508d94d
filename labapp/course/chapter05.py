"""Chapter 05, Multi-stage builds: the checks."""

from __future__ import annotations

import re

from labapp.bench import Bench
from labapp.course import checks
from labapp.course.exercises import Verdict, Wrong, correct
from labapp.registry.client import RegistryImage

_COMPILER = re.compile(r"cc1|cc1plus|.*-linux-(gnu|musl)\w*-(gcc|g\+\+|as|ld).*")


def check_05_two(bench: Bench, answer: object) -> Verdict:
    """Does the image ship no compiler, is it the shop, and does the Dockerfile make such a one?"""
    held = checks.pushed(bench, "shop/web:two")
    if found := _compilers(bench, held):
        raise Wrong(
            f"A layer of 'shop/web:two' still has a compiler: {found[0]}. Which base does the last "
            "stage stand on?"
        )
    checks.check_answers(bench, held, "No compiler ships.")
    checks.check_compiled(bench, held)
    file = checks.written(bench, "app/Dockerfile")
    with checks.trial(bench, file.parent) as tag:
        made = checks.sent(bench, tag)
        if _compilers(bench, made):
            raise Wrong(
                "No compiler ships in 'shop/web:two'. But it was not made from 'app/Dockerfile' as "
                "that is now, whose image has one."
            )
        checks.check_compiled(bench, made)
    return correct("The compiler did its work, and stayed at home.", image=held.pinned)


def check_05_mine(bench: Bench, answer: object) -> Verdict:
    """Is the image smaller than the slim base, and the shop?"""
    return checks.judge_small(bench, "shop/web:mine", times=1)


def _compilers(bench: Bench, held: RegistryImage) -> list[str]:
    """Return the compilers in any layer of an image, also those that a later layer deletes."""
    changes = checks.contents(bench, held).changes
    paths = set(changes.loc[changes["bytes"] > 0, "path"])
    return sorted(path for path in paths if _COMPILER.fullmatch(path.rpartition("/")[2]))
