"""Chapter 02, Registry: the checks."""

from __future__ import annotations

from typing import Any

from labapp.bench import Bench
from labapp.course import checks
from labapp.course.exercises import NotYet, Verdict, Wrong, correct


def check_02_sent(bench: Bench, answer: Any) -> Verdict:
    """Does the answer name the layers of 1.1 that 1.0 has not?"""
    wanted = "a list of digests, each a text that begins with 'sha256:'"
    answer = checks.answered(answer, wanted, str, list, tuple, set)
    named = {answer} if isinstance(answer, str) else {str(each) for each in answer}
    old, new = checks.given(bench, "shop/web:1.0"), checks.given(bench, "shop/web:1.1")
    known = {layer.digest for layer in old.manifest.layers}
    added = {layer.digest for layer in new.manifest.layers} - known
    if not added:
        raise NotYet("'shop/web:1.1' has no layer that 1.0 has not. Run the cells above again.")
    for digest in sorted(named - added):
        if digest in known:
            raise Wrong(f"{checks.short(digest)} is in 1.0 as well, so it was not sent again.")
        if digest in (new.manifest.config.digest, *new.digests):
            raise Wrong(f"{checks.short(digest)} is 1.1's manifest, index or config: no layer.")
        raise Wrong(f"'{digest[:24]}' is no layer of 1.1. Whole digests are needed.")
    if named != added:
        raise Wrong(f"You named {len(named)} of the {len(added)} layers that are new in 1.1.")
    return correct(
        "Those layers are in 1.1 and not in 1.0. Nothing else had to travel.",
        image=new.pinned,
        layers=" ".join(sorted(added)),
    )


def check_02_promote(bench: Bench, answer: object) -> Verdict:
    """Does production serve the very image that was tested?"""
    tested = checks.given(bench, "shop/web:1.1")
    begun = "prod/web" in bench.registry.repositories() and bench.registry.tags("prod/web")
    held = checks.pushed(bench, "prod/web:1.1", missing=Wrong if begun else NotYet)
    live = held.digest
    # Where the tag names an index, what is pulled and pushed on is the image for this machine.
    if live not in tested.digests:
        raise Wrong(
            f"'prod/web:1.1' is {checks.short(live)} and 'shop/web:1.1' is "
            f"{checks.short(tested.digest)}. Promoting gives the same image a second name; was "
            "another one tagged, or was it built again?"
        )
    return correct(f"Both repositories serve {checks.short(live)}", image=held.pinned)
