"""What happened one after the other: requests to a registry, and what a tag named."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from labapp.charts.figure import (
    BLUE,
    DARK,
    GREY,
    MARGIN,
    PALETTE,
    SMALL,
    TEXT,
    WIDTH,
    Chart,
    fitted,
    frame,
    ink,
    text_width,
    whole,
    wrapped,
)
from labapp.charts.frames import axes_width, label_rows
from labapp.charts.rows import checked
from labapp.feedback import amount

PHRASES = {200: "yes", 201: "stored", 202: "go on", 404: "no"}
"""What a registry's answers mean, in a word or two."""

_EXCHANGE = 36.0


def conversation(rows: pd.DataFrame) -> Chart:
    """Draw requests to a registry as a sequence diagram.

    Engines send several layers side by side, so that their requests are mixed in the log. Equal
    requests are drawn once, where the first of them came, with their number.

    Args:
        rows: requests in order; columns ``client``, ``method``, ``meaning``, ``status``, ``bytes``.

    Raises:
        LabError: there are no requests, or a column is missing.
    """
    columns = ("client", "method", "meaning", "status#", "bytes#")
    steps = _grouped(checked(rows, *columns, chart="a conversation"))
    client = str(rows["client"].iloc[0])
    axes = frame(
        title="Equal requests are drawn once, where the first of them came",
        height=_EXCHANGE * (len(steps) + 0.9), left=MARGIN, right=MARGIN, bottom=MARGIN,
    )  # fmt: skip
    axes.axis("off")
    axes.set(xlim=(0, 10), ylim=(len(steps), -0.9))
    for x, name in ((1.2, client), (8.8, "registry")):
        axes.plot([x, x], [-0.4, len(steps) - 0.2], color=GREY, linewidth=1)
        axes.text(x, -0.62, fitted(name, 140, TEXT, bold=True), ha="center", va="center",
                  fontsize=TEXT, weight="bold", color=DARK, parse_math=False)  # fmt: skip
    room = axes_width(axes) * 0.72
    for row, step in enumerate(steps):
        times = f"{step.count} times " if step.count > 1 else ""
        axes.annotate("", xy=(8.78, row + 0.1), xytext=(1.22, row + 0.1),
                      arrowprops={"arrowstyle": "-|>", "color": BLUE})  # fmt: skip
        axes.text(1.45, row - 0.01, fitted(f"{times}{step.method}  {step.meaning}", room, TEXT),
                  va="bottom", fontsize=TEXT, color=DARK, parse_math=False)  # fmt: skip
        axes.annotate("", xy=(1.22, row + 0.45), xytext=(8.78, row + 0.45),
                      arrowprops={"arrowstyle": "-|>", "color": GREY, "ls": "--"})  # fmt: skip
        answer = f"{step.status} {PHRASES.get(step.status, '')}".strip()
        answer += f", {amount(step.bytes)}" if step.bytes > 2 else ""
        axes.text(8.4, row + 0.45, answer, ha="right", va="center", fontsize=SMALL, color=DARK,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
    said = "; ".join(
        f"{step.count} times {step.method} {step.meaning}: {step.status}" for step in steps
    )
    return Chart(whole(axes), f"Sequence diagram between {client} and the registry. {said}.")


def tag_history(rows: pd.DataFrame) -> Chart:
    """Draw what a tag named and what a server ran, event by event.

    Args:
        rows: a row an event; columns ``event``, ``tag`` and ``running`` (digests, or None).

    Raises:
        LabError: there are no events, or a column is missing.
    """
    checked(rows, "event", "tag", "running", chart="a tag's history")
    lanes = {"the tag names": "tag", "the server runs": "running"}
    # What ran first has the first colour in every chart.
    seen = [d for lane in ("running", "tag") for d in rows[lane] if isinstance(d, str)]
    colours = {digest: PALETTE[n % 6] for n, digest in enumerate(dict.fromkeys(seen))}
    left = MARGIN + max(text_width(lane, TEXT) for lane in lanes) + 8
    column = (WIDTH - left - MARGIN) / len(rows)
    events = [wrapped(str(event), column - 8, SMALL) for event in rows["event"]]
    axes = frame(
        title="First eight digits of each digest, after each event", height=76, left=left,
        right=MARGIN, bottom=MARGIN + 8 + max(map(len, events)) * SMALL * 1.35,
    )  # fmt: skip
    for y, lane in enumerate(lanes.values()):
        for x, digest in enumerate(rows[lane]):
            if not isinstance(digest, str):
                continue
            colour = colours[digest]
            axes.barh(y, 1, left=x, height=0.72, color=colour, edgecolor="white", linewidth=2)
            axes.text(x + 0.5, y, fitted(_eight(digest), column - 4, TEXT), ha="center",
                      va="center", fontsize=TEXT, color=ink(colour))  # fmt: skip
    label_rows(axes, range(len(lanes)), list(lanes))
    axes.set(xlim=(0, len(rows)), ylim=(1.5, -0.5))
    ticks = [n + 0.5 for n in range(len(rows))]
    axes.set_xticks(ticks, ["\n".join(lines) for lines in events], fontsize=SMALL, parse_math=False)
    axes.spines["bottom"].set_visible(False)
    said = "; ".join(
        f"after '{row.event}' the tag names {_eight(row.tag)} and the server runs "
        f"{_eight(row.running)}"
        for row in rows.itertuples()
    )
    return Chart(whole(axes), f"Two lanes of digests over time. {said}.")


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
