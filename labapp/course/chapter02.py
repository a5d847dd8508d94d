"""Chapter 02, Registry: the checks."""

from __future__ import annotations

from labapp.bench import Bench
from labapp.course import checks
from labapp.course.exercises import NotYet, Verdict, Wrong, correct


def check_02_sent(bench: Bench, answer: object) -> Verdict:
    """Does the answer name the layers of 1.1 that 1.0 has not?"""
    if answer is ...:
        raise NotYet("No answer yet: replace the ... with the digests.")
    old, new = checks.given(bench, "shop/web:1.0"), checks.given(bench, "shop/web:1.1")
    known = {layer.digest for layer in old.manifest.layers}
    added = {layer.digest for layer in new.manifest.layers} - known
    if not added:
        raise NotYet("'shop/web:1.1' has no layer that 1.0 has not. Run the cells above again.")
    if isinstance(answer, str):
        answer = [answer]
    if not isinstance(answer, list | tuple | set) or not all(isinstance(d, str) for d in answer):
        raise Wrong(
            f"The answer is of type {type(answer).__name__}. Expected: a list of digests, each a "
            "text that begins with 'sha256:'."
        )
    for digest in sorted(set(answer) - added):
        if digest in known:
            raise Wrong(f"{checks.short(digest)} is in 1.0 as well, so it was not sent again.")
        if digest in (new.manifest.config.digest, new.manifest.digest):
            kind = "config" if digest == new.manifest.config.digest else "manifest"
            raise Wrong(f"{checks.short(digest)} is the {kind} of 1.1. It is no layer.")
        raise Wrong(f"'{digest[:24]}' is no layer of 1.1. Whole digests are needed.")
    if set(answer) != added:
        raise Wrong(f"You named {len(set(answer))} of the {len(added)} layers that are new in 1.1.")
    return correct(
        "Those layers are in 1.1 and not in 1.0. Nothing else had to travel.",
        image=new.pinned,
        layers=" ".join(sorted(added)),
    )


def check_02_promote(bench: Bench, answer: object) -> Verdict:
    """Does production serve the very image that was tested?"""
    tested = checks.given(bench, "shop/web:1.1")
    if checks.digest(bench, "prod/web:1.1") is None:
        there = "prod/web" in bench.registry.repositories() and bench.registry.tags("prod/web")
        if there and not checks.on_engine(bench, "prod/web:1.1"):
            raise Wrong(f"'prod/web' has these tags: {', '.join(there)}. Expected: 1.1.")
    held = checks.pushed(bench, "prod/web:1.1")
    live = held.digest
    # Where the tag names an index, what is pulled and pushed on is the image for this machine.
    if live not in (tested.digest, tested.manifest.digest):
        raise Wrong(
            f"'prod/web:1.1' is {checks.short(live)} and 'shop/web:1.1' is "
            f"{checks.short(tested.digest)}. Promoting gives the same image a second name; was "
            "another one tagged, or was it built again?"
        )
    return correct(f"Both repositories serve {checks.short(live)}", image=held.pinned)
