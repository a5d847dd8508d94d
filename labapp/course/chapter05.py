"""Chapter 05, Multi-stage builds: the checks."""

from __future__ import annotations

from labapp.bench import Bench
from labapp.course import checks
from labapp.course.exercises import Verdict, correct, wrong
from labapp.journey.bases import SLIM


def check_05_two(bench: Bench, answer: object) -> Verdict:
    """Does the image ship no compiler, and is it the shop?"""
    held = checks.pushed(bench, "shop/web:two")
    found = checks.compilers(bench, held)
    if found:
        raise wrong(
            f"A layer of 'shop/web:two' still has a compiler: {found[0]}. Which base does the last "
            "stage stand on?"
        )
    checks.check_answers(bench, held, "No compiler ships.")
    return correct("The compiler did its work, and stayed at home.", image=held.pinned)


def check_05_target(bench: Bench, answer: object) -> Verdict:
    """Does the image hold compiler, source and the built shop: the first stage?"""
    held = checks.pushed(bench, "shop/workshop:1")
    if not checks.compilers(bench, held):
        raise wrong(
            "'shop/workshop:1' has no compiler. It looks like the last stage; the first is wanted."
        )
    paths = set(checks.contents(bench, held).files["path"])
    if "/src/shop/_prices.c" not in paths:
        raise wrong("'shop/workshop:1' has a compiler, but no source in '/src/shop'.")
    built = [path for path in paths if path.startswith("/opt/venv/") and "/shop/_prices." in path]
    if not any(path.endswith(".so") for path in built):
        raise wrong(
            "'shop/workshop:1' has compiler and source, but the shop was not built in '/opt/venv'."
        )
    return correct(
        "Compiler, source and the built shop: all that a debugging session needs.",
        image=held.pinned,
    )


def check_05_mine(bench: Bench, answer: object) -> Verdict:
    """Is the image smaller than the slim base, and the shop?"""
    held = checks.pushed(bench, "shop/web:mine")
    base = bench.registry.image(bench.base(SLIM)).manifest.download_bytes
    return checks.judge_small(bench, held, limit=base)
