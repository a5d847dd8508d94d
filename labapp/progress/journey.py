"""The journey map: the steps of an image's way, and those that the learner knows how to guard."""

from __future__ import annotations

import html
from collections.abc import Container
from dataclasses import dataclass

import pandas as pd

from labapp.charts import Chart, journey


@dataclass(frozen=True)
class Step:
    """A step of the journey.

    Attributes:
        name: the step's.
        attack: what can get in.
        control: what stops it.
        exercises: those that light the step, when all are passed.
    """

    name: str
    attack: str
    control: str
    exercises: tuple[str, ...]


STEPS = (
    Step(
        "Source → build",
        "a secret is copied in, and a later layer only hides it",
        ".dockerignore, build secrets, a scan of every layer",
        ("01-cache", "01-context", "06-secret"),
    ),
    Step(
        "Base image",
        "the base's tag is moved to an image with a backdoor",
        "FROM …@sha256:…, and a fresh base for the fixes",
        ("03-from", "04-patch", "06-base"),
    ),
    Step(
        "Dependency",
        "a wheel is swapped for another of the same name and version",
        "hashes in the requirements; fewer packages",
        ("04-unused", "04-cve", "06-wheel"),
    ),
    Step(
        "Push",
        "somebody without the right pushes over your tag",
        "accounts and rights; servers may only pull",
        ("00-tag", "02-promote", "06-rights"),
    ),
    Step(
        "At rest",
        "a blob is altered in the registry's storage",
        "content addressing: the pull refuses it",
        ("03-digest", "07-diffid", "07-change"),
    ),
    Step(
        "In transit",
        "a proxy in between answers with another manifest",
        "TLS; and the digest, which catches it even without",
        ("02-sent", "07-upload"),
    ),
    Step(
        "Pull",
        "the tag moved between test and deployment",
        "pin by digest; a gate that refuses unpinned references",
        ("03-pin", "06-gate"),
    ),
    Step(
        "Run",
        "root in the container, a shell and a compiler at hand",
        "non-root, slim, a read-only file system",
        ("00-run", "04-small", "05-two", "05-target", "05-mine"),
    ),
    Step(
        "All of it",
        "a saboteur, who takes one to three of these",
        "a delivery script of your own that survives",
        ("08-survive", "08-find"),
    ),
)
"""The journey of the chapter; each exercise is in one step."""


@dataclass(frozen=True)
class JourneyMap:
    """The map, as a picture and as a table.

    Attributes:
        rows: a row a step; columns ``step``, ``attack``, ``control``, ``passed``, ``exercises``
            (how many are passed, of how many) and ``left`` (the ids of the others).
        chart: the picture.
    """

    rows: pd.DataFrame
    chart: Chart

    def __repr__(self) -> str:
        return repr(self.chart)

    def _repr_html_(self) -> str:
        """Show the picture, and below it the same as a table, which screen readers can walk."""
        head = "".join(
            f'<th scope="col" style="text-align:left">{name}</th>'
            for name in ("Step", "What can get in", "What stops it", "Passed", "Still to do")
        )
        return (
            f"{self.chart._repr_html_()}"
            '<details class="labapp-journey"><summary>The same as a table</summary>'
            f"<table><thead><tr>{head}</tr></thead><tbody>{self._body()}</tbody></table></details>"
        )

    def _body(self) -> str:
        lines = []
        for row in self.rows.to_dict("records"):
            count = f"{row['passed']} of {row['exercises']}"
            cells = (row["attack"], row["control"], count, row["left"] or "nothing: it is lit")
            lines.append(
                f'<tr><th scope="row" style="text-align:left">{html.escape(row["step"])}</th>'
                + "".join(
                    f'<td style="text-align:left">{html.escape(str(cell))}</td>' for cell in cells
                )
                + "</tr>"
            )
        return "".join(lines)


def journey_map(passed: Container[str]) -> JourneyMap:
    """Return the map for what a learner passed.

    Args:
        passed: the ids of the passed exercises.
    """
    rows = []
    for step in STEPS:
        left = [id for id in step.exercises if id not in passed]
        rows.append(
            {
                "step": step.name,
                "attack": step.attack,
                "control": step.control,
                "passed": len(step.exercises) - len(left),
                "exercises": len(step.exercises),
                "left": ", ".join(left),
            }
        )
    table = pd.DataFrame(rows)
    return JourneyMap(table, journey(table))
