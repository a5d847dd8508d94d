"""Chapter 02, Registry: the exercises."""

from __future__ import annotations

from labapp.bench import Bench
from labapp.exercises import evidence
from labapp.exercises.exercise import Exercise, Verdict, correct, not_yet, wrong


def _check_promote(bench: Bench, answer: object) -> Verdict:
    tested = evidence.digest(bench, "shop/web", "1.1")
    live = evidence.digest(bench, "prod/web", "1.1")
    if tested is None:
        return not_yet("The registry has no 'shop/web:1.1' yet. Run the cells above first.")
    if live is None:
        if evidence.on_engine(bench, f"{bench.registry.address}/prod/web:1.1"):
            return wrong("'prod/web:1.1' is on the engine, but not in the registry: push it.")
        if "prod/web" in bench.registry.repositories() and bench.registry.tags("prod/web"):
            tags = ", ".join(bench.registry.tags("prod/web"))
            return wrong(f"'prod/web' has these tags: {tags}. Expected: 1.1.")
        return not_yet("The registry has no 'prod/web:1.1' yet.")
    if live != tested:
        return wrong(
            f"'prod/web:1.1' is {evidence.short(live)} and 'shop/web:1.1' is "
            f"{evidence.short(tested)}. Promoting gives the same image a second name; was another "
            "one tagged, or was it built again?"
        )
    return correct(
        f"Both repositories serve {evidence.short(live)}",
        evidence={"image": evidence.pinned(bench, "prod/web", live)},
    )


def _check_sent(bench: Bench, answer: object) -> Verdict:
    if answer is ...:
        return not_yet("No answer yet: replace the ... with the digests.")
    old = evidence.image(bench, "shop/web", "1.0")
    new = evidence.image(bench, "shop/web", "1.1")
    if old is None or new is None:
        return not_yet("The registry needs 'shop/web:1.0' and '1.1'. Run the cells above first.")
    if isinstance(answer, str):
        answer = [answer]
    if not isinstance(answer, list | tuple | set) or not all(isinstance(d, str) for d in answer):
        return wrong(
            f"The answer is of type {type(answer).__name__}. Expected: a list of digests, each a "
            "text that begins with 'sha256:'."
        )
    given = set(answer)
    known = {layer.digest for layer in old.manifest.layers}
    added = {layer.digest for layer in new.manifest.layers} - known
    for digest in sorted(given - added):
        if digest in known:
            return wrong(f"{evidence.short(digest)} is in 1.0 as well, so it was not sent again.")
        if digest in (new.manifest.config.digest, new.manifest.digest):
            kind = "config" if digest == new.manifest.config.digest else "manifest"
            return wrong(f"{evidence.short(digest)} is the {kind} of 1.1. It is no layer.")
        return wrong(f"'{digest[:24]}' is no layer of 1.1. Whole digests are needed.")
    if given != added:
        return wrong(f"You named {len(given)} of the {len(added)} layers that are new in 1.1.")
    return correct(
        "Those layers are in 1.1 and not in 1.0. Nothing else had to travel.",
        evidence={"image": str(new.pinned), "layers": " ".join(sorted(added))},
    )


EXERCISES = (
    Exercise(
        id="02-sent",
        check=_check_sent,
        hints=(
            "`lab.layers(REFERENCE)` has a column `digest`. You have two images to compare.",
            "Python's sets subtract: `set(a) - set(b)` is what is in `a` and not in `b`.",
        ),
        solution="""
old = set(lab.layers(f"{lab.address}/shop/web:1.0")["digest"])
new = set(lab.layers(f"{lab.address}/shop/web:1.1")["digest"])
answer = list(new - old)
""",
        why="A digest names bytes. The registry has the bytes of all other digests already.",
    ),
    Exercise(
        id="02-promote",
        check=_check_promote,
        hints=(
            "You don't build anything here: the same image gets a second name.",
            "Pull `shop/web:1.1`, tag it as `prod/web:1.1`, push that name.",
        ),
        solution="""
live = f"{lab.address}/prod/web:1.1"
lab.pull(f"{lab.address}/shop/web:1.1")
lab.tag(f"{lab.address}/shop/web:1.1", live)
lab.push(live)
""",
        why="The registry links the layers into the second repository. The digest is the same, so "
        "production runs what was tested.",
    ),
)
