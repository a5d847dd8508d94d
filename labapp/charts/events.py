"""What happened one after the other: requests to a registry, and what a tag named."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from labapp.charts.figure import BLUE, DARK, GREY, PALETTE, WIDTH, Chart, entitle, name_rows, quiet
from labapp.feedback import amount

PHRASES = {200: "yes", 201: "stored", 202: "go on", 404: "no"}


def conversation(rows: pd.DataFrame) -> Chart:
    """Draw requests to a registry as a sequence diagram.

    Engines send several layers side by side, so that their requests are mixed in the log. Equal
    requests are drawn once, where the first of them came, with their number.

    Args:
        rows: requests in order; columns ``client``, ``method``, ``meaning``, ``status``, ``bytes``.
    """
    steps = _grouped(rows)
    figure = Figure(figsize=(WIDTH, 1.1 + 0.5 * len(steps)), layout="constrained")
    axes = figure.add_subplot()
    axes.axis("off")
    axes.set(xlim=(0, 10), ylim=(len(steps) + 0.1, -1.0))
    client = str(rows["client"].iloc[0]) if len(rows) else "docker"
    for x, name in ((1.2, client), (8.8, "registry")):
        axes.plot([x, x], [-0.4, len(steps) - 0.2], color=GREY, linewidth=1)
        axes.text(x, -0.6, name, ha="center", va="center", weight="bold", color=DARK)
    for row, step in enumerate(steps):
        times = f"{step.count} times " if step.count > 1 else ""
        axes.annotate("", xy=(8.75, row + 0.1), xytext=(1.25, row + 0.1),
                      arrowprops={"arrowstyle": "-|>", "color": BLUE})  # fmt: skip
        axes.text(1.45, row - 0.02, f"{times}{step.method}  {step.meaning}", va="bottom",
                  fontsize=9, color=DARK)  # fmt: skip
        axes.annotate("", xy=(1.25, row + 0.42), xytext=(8.75, row + 0.42),
                      arrowprops={"arrowstyle": "-|>", "color": GREY, "ls": "--"})  # fmt: skip
        answer = f"{step.status} {PHRASES.get(step.status, '')}".strip()
        answer += f", {amount(step.bytes)}" if step.bytes > 2 else ""
        axes.text(8.4, row + 0.42, answer, ha="right", va="center", fontsize=8,
                  color=DARK,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
    entitle(axes, "Equal requests are drawn once, where the first of them came")
    said = "; ".join(
        f"{step.count} times {step.method} {step.meaning}: {step.status}" for step in steps
    )
    return Chart(figure, f"Sequence diagram between {client} and the registry. {said}.")


def tag_history(rows: pd.DataFrame) -> Chart:
    """Draw what a tag named and what a server ran, event by event.

    Args:
        rows: a row an event; columns ``event``, ``tag`` and ``running`` (digests, or None).
    """
    lanes = {"the tag names": "tag", "the server runs": "running"}
    # What ran first has the first colour in every chart.
    seen = [d for lane in ("running", "tag") for d in rows[lane] if isinstance(d, str)]
    colours = {digest: PALETTE[n % 6] for n, digest in enumerate(dict.fromkeys(seen))}
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    axes = figure.add_subplot()
    for y, column in enumerate(lanes.values()):
        for x, digest in enumerate(rows[column]):
            if not isinstance(digest, str):
                continue
            axes.barh(y, 1, left=x, height=0.66, color=colours[digest], edgecolor="white")
            dark = colours[digest] in {"#ffa90e", "#92dadd"}
            axes.text(x + 0.5, y, digest.removeprefix("sha256:")[:8], ha="center", va="center",
                      family="monospace", fontsize=9, color=DARK if dark else "white")  # fmt: skip
    name_rows(axes, list(lanes))
    axes.set_ylim(1.5, -0.5)
    axes.set_xticks([n + 0.5 for n in range(len(rows))])
    axes.set_xticklabels(["\n".join(textwrap.wrap(str(event), 17)) for event in rows["event"]])
    axes.set_xlim(0, len(rows))
    quiet(axes)
    entitle(axes, "First eight digits of each digest, after each event")
    said = "; ".join(
        f"after '{row.event}' the tag names {_eight(row.tag)} and the server runs "
        f"{_eight(row.running)}"
        for row in rows.itertuples()
    )
    return Chart(figure, f"Two lanes of digests over time. {said}.")


@dataclass(frozen=True)
class _Step:
    method: str
    meaning: str
    status: int
    bytes: float
    count: int


def _grouped(rows: pd.DataFrame) -> list[_Step]:
    """Fold equal requests into one, with their number and all their bytes."""
    keys = ["method", "meaning", "status"]
    folded = rows.groupby(keys, sort=False)["bytes"].agg(["sum", "size"]).reset_index()
    return [
        _Step(
            row["method"], row["meaning"], int(row["status"]), float(row["sum"]), int(row["size"])
        )
        for row in folded.to_dict("records")
    ]


def _eight(digest: object) -> str:
    return digest.removeprefix("sha256:")[:8] if isinstance(digest, str) else "nothing"
