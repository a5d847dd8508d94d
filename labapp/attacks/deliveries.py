"""The last delivery with a saboteur, noted in the state: what an answer about it is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from labapp.attacks.judging import judge
from labapp.attacks.pipeline import PipelineRun
from labapp.bench import Bench

_NAME = "delivery"


@dataclass(frozen=True)
class Delivery:
    """What is known of a delivery after it.

    Attributes:
        seed: of the sabotage.
        script: the script's name.
        release: by which the delivery is known: the tag of its image.
        image: what was pushed, by digest; empty where nothing was.
        stopped_at: the step that failed; empty where none did.
        planted: for each fault that was planted, what gives it away, by what it is.
        left_out: the faults that it did not come to, as the script had stopped.
    """

    seed: int
    script: str
    release: str
    image: str
    stopped_at: str
    planted: Mapping[str, Mapping[str, str]]
    left_out: tuple[str, ...]


def note(bench: Bench, run: PipelineRun) -> None:
    """Note a delivery; one without a seed is passed over.

    Raises:
        StateError: the state can't be written.
    """
    if run.seed is None:
        return
    faults = judge(run).faults
    name, _, release = run.image.rpartition(":")
    bench.state.write(
        _NAME,
        {
            "seed": run.seed,
            "script": run.script.name,
            "release": release,
            "image": f"{name}@{run.pushed.digest}" if run.pushed is not None else "",
            "stopped_at": run.stopped_at,
            "planted": {each.fault: dict(each.evidence) for each in faults if each.planted},
            "left_out": [each.fault for each in faults if not each.planted],
        },
    )


def last(bench: Bench) -> Delivery | None:
    """Return the last delivery with a seed; None before the first.

    Raises:
        StateError: the state can't be read.
    """
    found = bench.state.read(_NAME)
    try:
        return Delivery(
            seed=int(found["seed"]),
            script=str(found["script"]),
            release=str(found["release"]),
            image=str(found["image"]),
            stopped_at=str(found["stopped_at"]),
            planted={str(name): dict(each) for name, each in found["planted"].items()},
            left_out=tuple(found["left_out"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
