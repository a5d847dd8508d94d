"""How long builds took, step by step and stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from labapp.charts.figure import DEEP, GREY, PALE, Chart, whole
from labapp.charts.frames import THICK, Bar, bars_axes, ground, inside
from labapp.charts.rows import checked, counted, duration, listed, named

NOTICED = 0.05
"""A step that takes less, in seconds, only wrote down a setting."""


@dataclass(frozen=True)
class _Part:
    """The steps of one stage, or of a whole build that has only one.

    Attributes:
        build: the build's name.
        stage: the stage's; empty in a build without.
        begin: how many seconds the build's stages before it took.
        steps: what ran in it.
    """

    build: str
    stage: str
    begin: float
    steps: Sequence[Mapping[Any, Any]]

    @property
    def seconds(self) -> float:
        return sum(float(step["seconds"]) for step in self.steps)

    @property
    def worked(self) -> int:
        """How many steps were neither cached nor just noted down."""
        return sum(not step["cached"] and step["seconds"] >= NOTICED for step in self.steps)

    @property
    def words(self) -> str:
        return f"{duration(self.seconds)}, {_had_work(self.worked)}"


def build_times(builds: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw how long builds took, step by step; with stages, each of them on a row of its own.

    Args:
        builds: for each build's name its steps; columns ``instruction``, ``cached``, ``seconds``,
            and ``stage`` in a build that has several (empty for one without a name).

    Raises:
        LabError: there are no rows, or a column is missing.
    """
    parts: list[_Part] = []
    for name, steps in named(builds, chart="build times").items():
        checked(steps, "instruction", "cached", "seconds#", chart="build times", name=name)
        parts += _parts(name, steps)
    has_stages = any(part.stage for part in parts)
    bars = [
        Bar(part.stage or "all steps", part.begin + part.seconds, part.words, part.build)
        if has_stages
        else Bar(part.build, part.seconds, part.words)
        for part in parts
    ]
    axes, places = bars_axes(
        bars,
        title="Each block is a step that had work to do; steps from the cache take no time"
        + (". A stage's row begins where the one before it ended" if has_stages else ""),
        unit="seconds of work",
    )
    for part, place in zip(parts, places, strict=True):
        left = part.begin
        for number, step in enumerate(part.steps):
            seconds = float(step["seconds"])
            colour = GREY if step["cached"] else (PALE, DEEP)[number % 2]
            axes.barh(place, seconds, left=left, height=THICK, color=colour, edgecolor="white",
                      linewidth=0.5)  # fmt: skip
            if not step["cached"]:
                inside(axes, left, seconds, place, str(step["instruction"]), on=colour)
            left += seconds
    ground(axes)
    return Chart(whole(axes), f"Bar chart of build times. {_said(parts)}")


def _parts(name: str, steps: pd.DataFrame) -> list[_Part]:
    """Cut a build's steps where a stage ends."""
    runs: list[tuple[str, list[Mapping[Any, Any]]]] = []
    for step in steps.to_dict("records"):
        stage = str(step.get("stage") or "")
        # Before the first stage there are only arguments, which belong to it as well as to none.
        if runs and (runs[-1][0] == stage or not _begins(runs)):
            runs[-1] = (stage, [*runs[-1][1], step])
        else:
            runs.append((stage, [step]))
    if len(runs) == 1:
        return [_Part(name, runs[0][0], 0.0, runs[0][1])]
    parts: list[_Part] = []
    for number, (stage, own) in enumerate(runs, start=1):
        called = stage or ("the last stage" if number == len(runs) else f"stage {number}")
        begin = parts[-1].begin + parts[-1].seconds if parts else 0.0
        parts.append(_Part(name, called, begin, own))
    return parts


def _begins(runs: Sequence[tuple[str, Sequence[Mapping[Any, Any]]]]) -> bool:
    """Say whether the last run holds more than what stands before a first stage."""
    stage, steps = runs[-1]
    keywords = {str(step["instruction"]).split(" ", 1)[0].upper() for step in steps}
    return len(runs) > 1 or bool(stage) or keywords != {"ARG"}


def _had_work(steps: int) -> str:
    return f"{counted(steps, 'step')} had work to do"


def _said(parts: Sequence[_Part]) -> str:
    sentences = []
    for build in dict.fromkeys(part.build for part in parts):
        own = [part for part in parts if part.build == build]
        if len(own) == 1:
            sentences.append(f"{build}: {own[0].words}")
            continue
        total = duration(sum(part.seconds for part in own))
        stages = listed([f"{part.stage} {duration(part.seconds)}" for part in own])
        worked = _had_work(sum(part.worked for part in own))
        sentences.append(f"{build}: {total}, {worked} (by stage: {stages})")
    return "; ".join(sentences) + "."
