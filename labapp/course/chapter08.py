"""Chapter 08, Capstone: the checks."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labapp import feedback
from labapp.attacks import delivery as deliveries
from labapp.attacks.attacks import ATTACKS
from labapp.attacks.delivery import FAULTS, Delivery, Judgement, PipelineRun, attempt
from labapp.attacks.forging import marker
from labapp.attacks.journal import undo
from labapp.bench import Bench
from labapp.course import checks
from labapp.course.exercises import NotYet, Verdict, Wrong, correct, saboteur
from labapp.course.receipts import Receipts
from labapp.errors import AttackError
from labapp.registry.manifests import digest_of

_NAIVE, _MINE = "naive", "mine"
"""The folders of the script that the chapter writes, and of the learner's own."""

_SLIPS: Mapping[str, str] = {
    "secret": "What of the folder does the build copy? Can your script see a file too many?",
    "base": "What does the build stand on: on a name, or on what was reviewed?",
    "dependency": "What does pip know of a wheel, besides its name?",
    "push": "Where does your script have its digest from: from its own push, or from a later look?",
    "rest": "A step that fails has to end with an exit code other than 0.",
    "moved": "Which image does the server ask for: a name, or what was pushed?",
    "transit": "What of the mirror's answer does the server check, or let the engine check?",
}

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NO_PROOF = ("file", "wheel", "wheel before", "digest before")
"""What a delivery notes of a fault that would be the same without it, or for everybody."""


def check_08_survive(bench: Bench, answer: object) -> Verdict:
    """Does the script deliver, and let none of the faults through?"""
    script = _script(bench)
    try:
        return _prove(bench, script)
    except AttackError as error:
        raise Wrong(f"'{script.name}' can't be tried: {error}") from error
    finally:
        with checks.quietly():
            undo(bench)


def _script(bench: Bench) -> Path:
    naive, mine = bench.work / _NAIVE / "deliver.py", bench.work / _MINE
    if not naive.is_file() or not mine.is_dir():
        raise NotYet("'work/08/mine' is not there yet. Run the cells above first.")
    there = [file for file in (mine / "deliver.py", mine / "deliver.sh") if file.is_file()]
    starter = naive.read_bytes().split()
    changed = [each for each in there if each.read_bytes().split() != starter]
    if not changed:
        raise NotYet(
            "'work/08/mine' has no script of yours yet: its 'deliver.py' is the naive one, or "
            "gone. Change it, or write 'deliver.sh' in its place."
        )
    if len(changed) > 1:
        raise NotYet("Both 'deliver.py' and 'deliver.sh' are yours. Remove the one not meant.")
    return changed[0]


def _prove(bench: Bench, script: Path) -> Verdict:
    image, runs = "", in_random_order()
    with feedback.bars(f"trying {script.name}", unit="steps") as bars:
        for done, fault in enumerate(runs):
            bars.update(script.name, done, len(runs), "")
            proof = attempt(bench, script, fault)
            _check_proof(script, fault, proof)
            image = image if fault else _till(bench, proof.run)
    return correct(
        f"'{script.name}' delivers, and none of {len(FAULTS)} faults gets through.",
        image=image,
        script=digest_of(script.read_bytes()),
    )


def in_random_order() -> list[str]:
    """Return each fault, and two or three times none: a script that counts knows none of them."""
    runs = [*FAULTS, *[""] * random.randint(2, 3)]
    return random.sample(runs, len(runs))


def _check_proof(script: Path, fault: str, proof: Judgement) -> None:
    words = f" Its last words: '{proof.run.last_line[:160]}'." if proof.run.last_line else ""
    ending = f"{proof.happened}.{words}"
    if fault and not proof.ok:
        wrong = ATTACKS[fault].wrong
        raise Wrong(f"It delivers, but not against '{fault}' ({wrong}): {ending} {_SLIPS[fault]}")
    if not proof.ok:
        raise Wrong(
            f"Without any fault, '{script.name}' has to deliver, each time, what it builds from "
            f"'app'. This time: {ending}"
        )


def _till(bench: Bench, run: PipelineRun) -> str:
    """Return what was delivered, by digest, or end the check where it is not the application."""
    held = bench.registry.image(run.image)
    wanted = (bench.work / _NAIVE / "app" / "till.py").read_bytes()
    files = dict(checks.added(bench, held))
    if not any(path.endswith("/till.py") and files[path] == wanted for path in files):
        raise Wrong("It delivers something else: the image has no 'till.py' as the chapter wrote.")
    if not any(path.endswith("/itsdangerous/__init__.py") for path in files):
        raise Wrong("The till it delivers has no 'itsdangerous'. A library less is no control.")
    return str(held.pinned)


def check_08_find(bench: Bench, answer: Any) -> Verdict:
    """Does the answer name what happened to the learner's own delivery, and what gives it away?"""
    wanted = "a dict of what happened, by its name in the table, with the evidence"
    answer = checks.answered(answer, wanted, Mapping)
    seed, delivery = saboteur(Receipts(bench.state)).own_seed, deliveries.last_delivery(bench)
    if delivery is None or delivery.seed != seed:
        last = f"The last one had the seed {delivery.seed}. " if delivery is not None else ""
        raise NotYet(f"There is no delivery with your own seed, {seed}. {last}Deliver once more.")
    if not all(_proofs(left) for left in delivery.planted.values()):
        raise NotYet(
            "The last delivery with your own seed let not all of it in. Deliver the naive script, "
            "which stops at nothing: 'work/08/naive/deliver.py'."
        )
    if unknown := [name for name in answer if name not in FAULTS]:
        raise Wrong(f"{unknown[0]!r} is not in the table. There are: {', '.join(FAULTS)}.")
    for fault, found in answer.items():
        if (slip := _mistaken(delivery, fault, found)) is not None:
            raise Wrong(f"'{fault}': {slip}")
    if len(answer) < len(delivery.planted):
        raise Wrong(
            f"You have found {len(answer) or 'nothing'} of {len(delivery.planted)}. One came in "
            "before the build, one after the push."
        )
    return correct(
        f"Found: {' and '.join(answer)}, and the evidence is of your own delivery.",
        image=delivery.image,
        **{str(name): str(answer[name]) for name in answer},
    )


def _proofs(left: Mapping[str, str]) -> set[str]:
    """Return the digests that give a fault away, of all that a delivery notes of it."""
    kept = (value for name, value in left.items() if name not in _NO_PROOF)
    return set(_DIGEST.findall(" ".join(kept)))


def _mistaken(delivery: Delivery, fault: str, found: object) -> str | None:
    """Return what is wrong with what a learner holds for the evidence; None where it is right."""
    if not isinstance(found, str) or not found.strip():
        return f"the evidence is {found!r:.60}. Expected: a text with a digest or a log line."
    if fault not in delivery.planted:
        return "that is not what happened in your delivery. What else would look like it?"
    left = delivery.planted[fault]
    digests, release = set(_DIGEST.findall(found)), delivery.release
    if len(digests) > 2:
        return f"there are {len(digests)} digests in it. Which one is the evidence?"
    if digests & _proofs(left) or (marker(fault) in found and release in found):
        return None
    right = {left.get("wheel before"), left.get("digest before")}
    if digests & (right | set(_DIGEST.findall(delivery.image))):
        return (
            "that is the digest of what should be there, or of your image as a whole. What is "
            "there instead, in which part of it, or beside it?"
        )
    if digests or marker(fault) in found:
        return (
            f"that is no trace of it in your delivery '{release}'. Is it of what else happened, of "
            "another delivery, or of what is always there?"
        )
    return (
        f"'{found.strip()[:50]}' holds no whole digest, 'sha256:' and 64 hexadecimal digits, and "
        "is no line of a log that shows it."
    )
