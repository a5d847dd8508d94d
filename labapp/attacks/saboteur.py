"""The saboteur: one to three faults, chosen by a seed, planted between a delivery's steps."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labapp import images
from labapp.attacks import mirror
from labapp.attacks.changes import alter_blob, move_tag
from labapp.attacks.doing import SECRET, swap_wheel
from labapp.attacks.forging import forge, marker
from labapp.attacks.journal import Journal
from labapp.attacks.targets import own_path
from labapp.bench import Bench
from labapp.errors import AttackError
from labapp.progress.receipts import Receipts
from labapp.reference import Reference

FAULTS: Mapping[str, str] = {
    "secret": "build",
    "base": "build",
    "dependency": "build",
    "push": "pin",
    "rest": "pin",
    "moved": "deploy",
    "transit": "deploy",
}
"""The attacks that a delivery can meet, each with the step before which it is planted."""

MOST = 3
"""As many faults are planted in one delivery at the most."""

SECRET_FILE = ".env"


@dataclass(frozen=True)
class Sabotage:
    """What the saboteur is going to do; printing it gives nothing away.

    Attributes:
        seed: by which the faults were chosen; None where they were named.
        faults: the attacks' ids, in the order of the journey.
    """

    seed: int | None
    faults: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class Planted:
    """One fault that was planted.

    Attributes:
        fault: the attack's id.
        evidence: what gives it away, by what it is.
        sign: by which it is known in an image: a text in a layer, or the diff ID of a layer; empty
            for a fault that leaves none.
    """

    fault: str
    evidence: Mapping[str, str]
    sign: str = ""


@dataclass(frozen=True)
class Scene:
    """Where the saboteur works: the base and the image of the delivery by tag, and its context."""

    bench: Bench
    base: Reference
    image: Reference
    app: Path

    @property
    def occasion(self) -> str:
        """What makes whatever is planted one of a kind: no two deliveries leave the same digest."""
        return str(self.image.tag)


def chosen(seed: int, learner: int) -> tuple[str, ...]:
    """Return the faults for a seed: the same for the same learner, others for another one.

    Args:
        seed: that the learner chose.
        learner: the learner's own number.

    Raises:
        AttackError: the seed is not a whole number.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise AttackError(
            f"choosing faults by the seed {seed!r}: a seed is a whole number. A delivery with one "
            "certain fault: 'lab.prove(script, FAULT)'."
        )
    draw = random.Random(f"{learner}:{seed}")
    drawn = set(draw.sample(list(FAULTS), draw.randint(1, MOST)))
    return tuple(fault for fault in FAULTS if fault in drawn)


def sabotage(bench: Bench, *, seed: int) -> Sabotage:
    """Choose the faults of a delivery by a seed, mixed with the learner's own number.

    Raises:
        StateError: the receipts, which know that number, can't be read.
    """
    return Sabotage(seed, chosen(seed, Receipts(bench.state).seed_for("08-survive")))


def own_seed(bench: Bench) -> int:
    """Return the learner's own seed: the first from a number of theirs on that plants two faults.

    One of them is planted before the build and one after the push, so that neither hides the other.

    Raises:
        StateError: the receipts, which know that number, can't be read.
    """
    receipts = Receipts(bench.state)
    learner = receipts.seed_for("08-survive")
    first = 1000 + receipts.seed_for("08-find") % 9000
    return next(seed for seed in itertools.count(first) if _is_fair(chosen(seed, learner)))


def practice_seed(bench: Bench) -> int:
    """Return the first seed that plants two faults like :func:`own_seed` does, but other ones.

    Raises:
        StateError: the receipts, which know the learner's number, can't be read.
    """
    learner = Receipts(bench.state).seed_for("08-survive")
    own = set(chosen(own_seed(bench), learner))
    return next(
        seed
        for seed in itertools.count(1)
        if _is_fair(faults := chosen(seed, learner)) and not own & set(faults)
    )


def _is_fair(faults: tuple[str, ...]) -> bool:
    return len(faults) == 2 and [FAULTS[fault] == "build" for fault in faults] == [True, False]


def named(faults: tuple[str, ...]) -> Sabotage:
    """Return a sabotage of certain faults.

    Raises:
        AttackError: there is no such fault.
    """
    for fault in faults:
        if not isinstance(fault, str) or fault not in FAULTS:
            raise AttackError(
                f"planning the fault {fault!r}: there is none. There are: {', '.join(FAULTS)}."
            )
    return Sabotage(None, tuple(fault for fault in FAULTS if fault in faults))


def plant(scene: Scene, fault: str) -> Planted:
    """Plant a fault; the mirror is started apart, as it is part of each delivery.

    Raises:
        LabError: what it needs is not there.
    """
    return _PLANT[fault](scene)


def place_mirror(scene: Scene, *, honest: bool) -> tuple[str, Planted | None]:
    """Start the mirror through which the server pulls; return its address, and the fault in it."""
    if honest:
        return mirror.place(scene.bench, "mirror", None), None
    forged = forge(scene.bench, scene.image, "transit", occasion=scene.occasion)
    address = mirror.place(scene.bench, "transit", forged)
    evidence = {"digest handed out": forged.manifest.digest, "layer": forged.layer.digest}
    return address, Planted("transit", evidence, forged.diff_ids[-1])


def _secret(scene: Scene) -> Planted:
    path = own_path(scene.bench, scene.app / SECRET_FILE)
    before = path.read_bytes() if path.exists() else b""
    text = f"# {marker('secret')}\n{SECRET}"
    Journal(scene.bench.state).change_file("secret", path, before + text.encode())
    return Planted("secret", {"file": str(path)}, marker("secret"))


def _base(scene: Scene) -> Planted:
    planted = _moved_tag(scene, "base", scene.base)
    images.remove(scene.bench.engine, scene.base)
    return planted


def _dependency(scene: Scene) -> Planted:
    app = own_path(scene.bench, scene.app)
    wheel, before, after = swap_wheel(scene.bench, "dependency", app, occasion=scene.occasion)
    evidence = {"wheel": wheel.name, "wheel before": before, "wheel now": after}
    return Planted("dependency", evidence, marker("dependency"))


def _rest(scene: Scene) -> Planted:
    change = alter_blob(scene.bench, "rest", scene.image)
    return Planted("rest", {"blob": change.data["digest"]})


def _moved_tag(scene: Scene, fault: str, tag: Reference) -> Planted:
    forged, evidence = move_tag(scene.bench, fault, tag, occasion=scene.occasion)
    return Planted(fault, evidence, forged.diff_ids[-1])


_PLANT: dict[str, Callable[[Scene], Planted]] = {
    "secret": _secret,
    "base": _base,
    "dependency": _dependency,
    "push": lambda scene: _moved_tag(scene, "push", scene.image),
    "rest": _rest,
    "moved": lambda scene: _moved_tag(scene, "moved", scene.image),
}
