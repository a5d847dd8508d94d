"""Rows in, a labelled figure with alternative text out.

One quiet style for all: colour-blind safe colours that also differ in brightness, labels at the
marks instead of a legend, units on every axis. Nothing here measures; it only draws.
"""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labapp.feedback import amount

BLUE, DEEP, ORANGE, GREY, DARK = "#3f90da", "#1f5f9e", "#bd1f01", "#b9bec4", "#30343a"
PALETTE = ("#3f90da", "#bd1f01", "#ffa90e", "#832db6", "#92dadd", "#717581")
PHRASES = {200: "yes", 201: "stored", 202: "go on", 404: "no"}
WIDTH, ROW = 8.6, 0.42
NOTICED = 0.05
"""A step that takes less, in seconds, only wrote down a setting."""


@dataclass(frozen=True)
class Chart:
    """A figure and what it says.

    Attributes:
        figure: the picture.
        alt: the finding in a sentence or two, for those who don't see the picture.
    """

    figure: Figure
    alt: str

    def show(self) -> None:
        """Show the chart below the notebook's cell, with its alternative text."""
        data = base64.b64encode(self.png()).decode("ascii")
        width = round(self.figure.get_figwidth() * 88)
        display(  # type: ignore[no-untyped-call]
            HTML(  # type: ignore[no-untyped-call]
                f'<img class="labapp-chart" alt="{html.escape(self.alt)}" '
                f'style="max-width:100%;width:{width}px" src="data:image/png;base64,{data}">'
            )
        )

    def png(self) -> bytes:
        """Return the picture as PNG, twice as fine as it is shown."""
        out = io.BytesIO()
        self.figure.savefig(out, format="png", dpi=176, facecolor="white")
        return out.getvalue()

    def save(self, path: Path) -> Path:
        """Write the picture to a ``.png`` or ``.svg`` file."""
        self.figure.savefig(path, dpi=176, facecolor="white")
        return path


def layers(rows: pd.DataFrame) -> Chart:
    """Draw what each layer of an image adds to a pull.

    Args:
        rows: a row a layer, lowest first; columns ``instruction`` and ``download_bytes``.
    """
    names = [_short(text, 52) for text in rows["instruction"]]
    sizes = [float(size) for size in rows["download_bytes"]]
    axes = _bars_axes(len(names), "megabytes to download (compressed)")
    axes.barh(range(len(names)), [size / 1e6 for size in sizes], color=BLUE, height=0.62)
    _end_labels(axes, [size / 1e6 for size in sizes], [amount(size) for size in sizes])
    _names(axes, names)
    total, largest = sum(sizes), max(range(len(sizes)), key=sizes.__getitem__)
    _title(axes, f"{len(names)} layers, {amount(total)} in all; the first instruction is on top")
    return Chart(
        axes.figure,  # type: ignore[arg-type]
        f"Bar chart of {len(names)} layers, {amount(total)} in all. The largest is "
        f"'{names[largest]}' with {amount(sizes[largest])}, "
        f"{sizes[largest] / total:.0%} of the download.",
    )


def build_times(builds: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw how long builds took, step by step.

    Args:
        builds: for each build's name its steps; columns ``instruction``, ``cached``, ``seconds``.
    """
    axes = _bars_axes(len(builds), "seconds")
    totals, words = [], []
    widest = max(float(steps["seconds"].sum()) for steps in builds.values()) or 1.0
    for row, steps in enumerate(builds.values()):
        left = 0.0
        for number, step in enumerate(steps.to_dict("records")):
            seconds = float(step["seconds"])
            axes.barh(
                row, seconds, left=left, height=0.62, edgecolor="white",
                color=GREY if step["cached"] else (BLUE, DEEP)[number % 2],
            )  # fmt: skip
            if seconds > 0.13 * widest and not step["cached"]:
                text = _ending(str(step["instruction"]), int(60 * seconds / widest))
                axes.text(left + seconds / 2, row, text, ha="center", va="center", fontsize=8,
                          color="white")  # fmt: skip
            left += seconds
        ran = int((~steps["cached"].astype(bool) & (steps["seconds"] >= NOTICED)).sum())
        totals.append(left)
        words.append(f"{left:.1f} s, {ran} steps had work to do")
    _end_labels(axes, totals, words)
    _names(axes, list(builds))
    _title(axes, "Each block is a step that had work to do; cached steps take no time")
    said = "; ".join(f"{name}: {text}" for name, text in zip(builds, words, strict=True))
    return Chart(axes.figure, f"Bar chart of build times. {said}.")  # type: ignore[arg-type]


def sizes(values: Mapping[str, float], *, title: str) -> Chart:
    """Draw a few amounts of bytes, one bar each.

    Args:
        values: bytes by name.
        title: what the bars have in common.
    """
    axes = _bars_axes(len(values), "megabytes")
    numbers = [value / 1e6 for value in values.values()]
    words = [amount(value) for value in values.values()]
    axes.barh(range(len(numbers)), numbers, color=BLUE, height=0.62)
    _end_labels(axes, numbers, words)
    _names(axes, list(values))
    _title(axes, title)
    said = "; ".join(f"{name}: {text}" for name, text in zip(values, words, strict=True))
    return Chart(axes.figure, f"Bar chart. {title}. {said}.")  # type: ignore[arg-type]


def pushes(rows: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw how much of an image each push sent.

    Args:
        rows: for each push's name its layers; columns ``bytes`` (compressed) and ``outcome``
            (``sent``, ``mounted`` or ``already there``).
    """
    axes = _bars_axes(len(rows), "megabytes sent (layers, compressed)")
    words, ends = [], []
    for row, table in enumerate(rows.values()):
        is_sent = table["outcome"] == "sent"
        sent, whole = float(table.loc[is_sent, "bytes"].sum()), float(table["bytes"].sum())
        axes.barh(row, sent / 1e6, color=BLUE, height=0.62)
        words.append(f"{amount(sent)}: {is_sent.sum()} of {len(table)} layers")
        ends.append(sent / 1e6)
    _end_labels(axes, ends, words)
    _names(axes, list(rows))
    _title(axes, f"The image has {amount(whole)}. Each push sent only what was missing")
    said = "; ".join(f"{name}: {text}" for name, text in zip(rows, words, strict=True))
    return Chart(axes.figure, f"Bar chart of pushes. {said}.")  # type: ignore[arg-type]


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
    _title(axes, "Equal requests are drawn once, where the first of them came")
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
    _names(axes, list(lanes))
    axes.set_ylim(1.5, -0.5)
    axes.set_xticks([n + 0.5 for n in range(len(rows))])
    axes.set_xticklabels(["\n".join(textwrap.wrap(str(event), 17)) for event in rows["event"]])
    axes.set_xlim(0, len(rows))
    _quiet(axes)
    _title(axes, "First eight digits of each digest, after each event")
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


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: max(0, length - 1)] + "…"


def _ending(text: str, length: int) -> str:
    """Return the end of an instruction: its beginning is often the same as another's."""
    text = " ".join(text.split())
    return text if len(text) <= length else "…" + text[-max(1, length - 1) :]


def _bars_axes(count: int, unit: str) -> Axes:
    figure = Figure(figsize=(WIDTH, 1.15 + ROW * count), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(unit, color=DARK, fontsize=9)
    axes.set_ylim(count - 0.4, -0.6)
    _quiet(axes)
    return axes


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(length=0, labelsize=9, colors=DARK)


def _title(axes: Axes, text: str) -> None:
    axes.figure.suptitle(text, fontsize=10, x=0.01, ha="left", color=DARK)


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)))
    axes.set_yticklabels(names)


def _end_labels(axes: Axes, ends: Sequence[float], words: Sequence[str]) -> None:
    """Write each bar's number behind its end, and leave room for the longest one."""
    longest = max(ends, default=1.0) or 1.0
    for row, (end, text) in enumerate(zip(ends, words, strict=True)):
        axes.text(end + longest * 0.012, row, text, va="center", fontsize=9, color=DARK)
    room = max((end + longest * 0.0145 * len(text) for end, text in zip(ends, words, strict=True)))
    axes.set_xlim(0, max(longest * 1.05, room))
