"""What happened one after the other: requests to a registry, and what a tag named."""

from __future__ import annotations

from typing import Any

import pandas as pd

from labapp.charts.figure import (
    BLUE,
    GREY,
    MARGIN,
    PALETTE,
    SMALL,
    TEXT,
    WIDTH,
    Chart,
    axes_width,
    fitted,
    frame,
    ink,
    text_width,
    whole,
    wrapped,
    write,
)
from labapp.charts.words import checked
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
    checked("a conversation", rows, *columns)
    keys = ["method", "meaning", "status"]
    steps = rows.groupby(keys, sort=False)["bytes"].agg(["sum", "size"]).reset_index()
    client = str(rows["client"].iloc[0])
    axes = frame(
        title="Equal requests are drawn once, where the first of them came",
        height=_EXCHANGE * (len(steps) + 0.9), left=MARGIN, right=MARGIN, bottom=MARGIN,
    )  # fmt: skip
    axes.axis("off")
    axes.set(xlim=(0, 10), ylim=(len(steps), -0.9))
    for x, name in ((1.2, client), (8.8, "registry")):
        axes.plot([x, x], [-0.4, len(steps) - 0.2], color=GREY, linewidth=1)
        name = fitted(name, 140, TEXT, bold=True)
        write(axes, x, -0.62, name, size=TEXT, ha="center", weight="bold")
    room = axes_width(axes) * 0.72
    said = []
    exchanges: list[Any] = list(steps.itertuples(index=False))
    for y, (method, meaning, status, size, count) in enumerate(exchanges):
        times = f"{count} times " if count > 1 else ""
        said.append(f"{count} times {method} {meaning}: {status}")
        axes.annotate("", xy=(8.78, y + 0.1), xytext=(1.22, y + 0.1),
                      arrowprops={"arrowstyle": "-|>", "color": BLUE})  # fmt: skip
        request = fitted(f"{times}{method}  {meaning}", room, TEXT)
        write(axes, 1.45, y - 0.01, request, size=TEXT, va="bottom")
        axes.annotate("", xy=(1.22, y + 0.45), xytext=(8.78, y + 0.45),
                      arrowprops={"arrowstyle": "-|>", "color": GREY, "ls": "--"})  # fmt: skip
        answer = f"{status} {PHRASES.get(status, '')}".strip()
        answer += f", {amount(size)}" if size > 2 else ""
        write(axes, 8.4, y + 0.45, answer, ha="right",
              bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
    words = "; ".join(said)
    return Chart(whole(axes), f"Sequence diagram between {client} and the registry. {words}.")


def tag_history(rows: pd.DataFrame) -> Chart:
    """Draw what a tag named and what a server ran, event by event.

    Args:
        rows: a row an event; columns ``event``, ``tag`` and ``running`` (digests, or None).

    Raises:
        LabError: there are no events, or a column is missing.
    """
    checked("a tag's history", rows, "event", "tag", "running")
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
            eight = fitted(_eight(digest), column - 4, TEXT)
            write(axes, x + 0.5, y, eight, size=TEXT, ha="center", color=ink(colour))
    axes.set_yticks(range(len(lanes)), list(lanes), fontsize=TEXT, parse_math=False)
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


def _eight(digest: object) -> str:
    return digest.removeprefix("sha256:")[:8] if isinstance(digest, str) else "nothing"
