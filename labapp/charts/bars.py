"""Horizontal bars, made of blocks: layers, sizes, pushes, builds, pulls.

Every chart here is rows for :func:`stacked_bars`, a title that says the finding, and the numbers in
words.
"""

from __future__ import annotations

import itertools
import statistics
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Polygon

from labapp.charts.figure import (
    BLUE,
    DARK,
    DEEP,
    GREY,
    MARGIN,
    PALE,
    PALETTE,
    SMALL,
    TEXT,
    Chart,
    axes_width,
    fitted,
    frame,
    ink,
    text_width,
    whole,
    wrapped,
)
from labapp.charts.words import (
    ALIKE,
    byte_unit,
    checked,
    checked_all,
    counted,
    duration,
    extremes,
    listed,
    numbers,
    quoted,
    telling,
    times,
)
from labapp.errors import LabError
from labapp.feedback import amount

THICK = 0.66
"""How much of its row a bar fills."""

LINES = {"slow": 10, "typical": 100, "fast": 1000}
"""The lines that a pull is computed for, in megabits (a million bits) a second."""

_NOTICED = 0.05
"""A step that takes less, in seconds, only wrote down a setting."""


@dataclass(frozen=True)
class Block:
    """A part of a bar: its length in the axis' unit, its colour, and what is written into it.

    Where there is no room for the text, the letter before it stands alone.
    """

    length: float
    colour: str = BLUE
    text: str = ""
    letter: str = ""


@dataclass(frozen=True)
class Row:
    """A bar: the name before it, its blocks from left to right, and the words behind its end.

    Rows with the same ``group`` stand together, under its name. ``begin`` is where the bar begins;
    ``dots`` are single measurements, of which an outlined bar is the middle one.
    """

    name: str
    blocks: Sequence[Block]
    words: str
    group: str = ""
    begin: float = 0.0
    dots: Sequence[float] = field(default=())

    @property
    def end(self) -> float:
        """How far the row reaches, in the axis' unit."""
        return max([self.begin + sum(block.length for block in self.blocks), *self.dots])


def stacked_bars(
    rows: Sequence[Row], *, title: str, unit: str, note: str = "", row: float = 27.0,
    thick: float = THICK,
) -> tuple[Axes, list[float]]:  # fmt: skip
    """Draw rows, the first on top; return the axes, and the place of each row on them.

    The scale is the largest at which the words behind the bars still fit into the figure. ``unit``
    is the axis', with what it measures; ``row`` is a row's height in points.
    """
    starts = [number > 0 and row.group != rows[number - 1].group for number, row in enumerate(rows)]
    places = [number + 0.5 * sum(starts[: number + 1]) for number in range(len(rows))]
    names = [fitted(row.name, 230, TEXT, keep="ends") for row in rows]
    groups = ["\n".join(wrapped(row.group, 140, TEXT, bold=True)[:2]) for row in rows]
    of_groups = max(text_width(line, TEXT, bold=True) for g in groups for line in g.split("\n"))
    left = MARGIN + max(text_width(name, TEXT) for name in names) + 8
    axes = frame(
        title=title, height=row * (places[-1] + 1), bottom=40 if unit else MARGIN, note=note,
        left=left + (of_groups + 12 if of_groups else 0),
    )  # fmt: skip
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_ylim(places[-1] + 0.5, -0.5)
    axes.set_yticks(places, names, fontsize=TEXT, parse_math=False)
    axes.set_xlabel(unit, color=DARK, fontsize=SMALL, labelpad=6, parse_math=False)
    room = axes_width(axes)
    words = [fitted(row.words, 0.7 * room, TEXT) for row in rows]
    scales = [
        (room - 6 - text_width(text, TEXT)) / row.end
        for row, text in zip(rows, words, strict=True)
        if row.end > 0
    ]
    axes.set_xlim(0, room / min(scales, default=room))
    for one, place, text in zip(rows, places, words, strict=True):
        _draw(axes, one, place, thick)
        behind(axes, one.end, place, text)
    for group in dict.fromkeys(groups):
        own = [place for place, other in zip(places, groups, strict=True) if other == group]
        axes.annotate(
            group, (0, sum(own) / len(own)), xycoords=("figure points", "data"),
            xytext=(MARGIN, 0), textcoords=("offset points", "offset points"),
            va="center", fontsize=TEXT, weight="bold", color=DARK, parse_math=False,
            annotation_clip=False,
        )  # fmt: skip
    # A bar of nothing is seen to be one.
    axes.axvline(0, color=GREY, linewidth=1, zorder=0)
    return axes, places


def behind(axes: Axes, x: float, y: float, text: str) -> None:
    """Write what a bar amounts to behind its end."""
    axes.annotate(
        text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=TEXT,
        color=DARK, parse_math=False, annotation_clip=False,
    )  # fmt: skip


def _draw(axes: Axes, row: Row, place: float, thick: float) -> None:
    left = row.begin
    measured = {"color": "white", "edgecolor": DARK, "hatch": "////", "linewidth": 0.8}
    for block in row.blocks:
        single = len(row.blocks) == 1 and not block.text
        look: dict[str, Any] = {"color": block.colour}
        if block.colour == "white":
            look = measured
        elif not single:
            look |= {"edgecolor": "white", "linewidth": 0.5}
        axes.barh(place, block.length, left=left, height=thick, **look)
        _write_inside(axes, block, left, place)
        left += block.length
    if len(row.dots) > 1:
        axes.plot(row.dots, [place] * len(row.dots), "o", color=DARK, markersize=3.5,
                  markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip


def _write_inside(axes: Axes, block: Block, left: float, place: float) -> None:
    """Write into a block the end of what it is, if there is room for some of it."""
    low, high = axes.get_xlim()
    room = block.length / (high - low) * axes_width(axes) - 4
    before = block.letter + " " if block.letter else ""
    shown = fitted(block.text, room - 4 - text_width(before, SMALL), SMALL, keep="end")
    if shown.startswith("…") and len(shown) < 10:
        shown = ""
    shown = (before + shown).strip()
    if shown and text_width(shown, SMALL) <= room:
        axes.text(
            left + block.length / 2, place, shown, ha="center", va="center", fontsize=SMALL,
            color=ink(block.colour), parse_math=False,
        )  # fmt: skip


def layers(rows: pd.DataFrame) -> Chart:
    """Draw what each layer of an image adds to a pull.

    Args:
        rows: a row a layer, lowest first; columns ``instruction`` and ``download_bytes``.

    Raises:
        LabError: there are no rows, or a column is missing.
    """
    checked("layers", rows, "instruction", "download_bytes#")
    names = [" ".join(str(text).split()) for text in rows["instruction"]]
    weights = numbers(rows, "download_bytes")
    total, most = sum(weights), max(weights)
    count = counted(len(names), "layer")
    share = f", {most / total:.0%} of the download" if total else ""
    largest = fitted(names[weights.index(most)], 500, SMALL, keep="ends")
    return _bytes_chart(
        list(zip(names, weights, [amount(size) for size in weights], strict=True)),
        title=f"{count}, {amount(total)} to download; the first instruction is on top",
        unit="{} to download (compressed)",
        alt=f"Bar chart of {count}, {amount(total)} in all. The largest is '{largest}' with "
        f"{amount(most)}{share}.",
    )


def sizes(values: Mapping[str, float], *, title: str) -> Chart:
    """Draw a few amounts of bytes, one bar each.

    Args:
        values: bytes by name.
        title: what the bars have in common.

    Raises:
        LabError: there are no values, or one is no number of bytes.
    """
    checked_all("sizes", values)
    checked("sizes", pd.DataFrame({"bytes": list(values.values())}), "bytes#")
    rows = [(name, value, amount(value)) for name, value in values.items()]
    said = "; ".join(f"{name}: {words}" for name, _, words in rows)
    return _bytes_chart(rows, title=title, unit="{}", alt=f"Bar chart. {title}. {said}.")


def pushes(rows: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw how much of an image each push sent.

    Args:
        rows: for each push's name its layers; columns ``bytes`` (compressed) and ``outcome``
            (``sent``, ``mounted`` or ``already there``).

    Raises:
        LabError: there are no rows, or a column is missing.
    """
    drawn = []
    for name, table in checked_all("pushes", rows, "bytes#", "outcome").items():
        is_sent = table["outcome"] == "sent"
        sent = float(table.loc[is_sent, "bytes"].sum())
        words = f"{amount(sent)}: {is_sent.sum()} of {counted(len(table), 'layer')}"
        drawn.append((name, sent, words))
    largest = max(float(table["bytes"].sum()) for table in rows.values())
    said = "; ".join(f"{name}: {words}" for name, _, words in drawn)
    return _bytes_chart(
        drawn,
        title=f"The image has {amount(largest)}. Each push sent only what was missing",
        unit="{} sent (layers, compressed)",
        alt=f"Bar chart of pushes. {said}.",
    )


def _bytes_chart(
    rows: Sequence[tuple[str, float, str]], *, title: str, unit: str, alt: str
) -> Chart:
    """Draw a name, bytes and words a row; ``{}`` in the axis' unit becomes the fitting one."""
    size, word = byte_unit(max(value for _, value, _ in rows))
    bars = [Row(name, [Block(value / size)], words) for name, value, words in rows]
    axes, _ = stacked_bars(bars, title=title, unit=unit.format(word))
    return Chart(whole(axes), alt)


def variant_sizes(variants: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw what images weigh, packed for the way and unpacked, stacked by layer.

    Args:
        variants: for each image's name its layers, lowest first; columns ``instruction``,
            ``download_bytes`` and ``unpacked_bytes``.

    Raises:
        LabError: there are no rows, or a column is missing.
    """
    columns = {"download_bytes": "to download", "unpacked_bytes": "unpacked"}
    checked_all("sizes of variants", variants, "instruction", *(f"{name}#" for name in columns))
    totals = {
        name: {column: sum(numbers(rows, column)) for column in columns}
        for name, rows in variants.items()
    }
    size, unit = byte_unit(max(value for total in totals.values() for value in total.values()))
    rows = []
    for (name, table), column in itertools.product(variants.items(), columns):
        layered = zip(numbers(table, column), table["instruction"], strict=True)
        blocks = [
            Block(value / size, (DEEP, PALE)[number % 2], telling(text))
            for number, (value, text) in enumerate(layered)
        ]
        rows.append(Row(columns[column], blocks, amount(totals[name][column]), name))
    axes, _ = stacked_bars(
        rows, title=_sizes_title(totals), unit=f"{unit}; each block is a layer, the lowest first"
    )
    said = "; ".join(
        f"{name}: {amount(totals[name]['download_bytes'])} to download, "
        f"{amount(totals[name]['unpacked_bytes'])} unpacked, in {counted(len(table), 'layer')}"
        for name, table in variants.items()
    )
    return Chart(whole(axes), f"Bar chart of sizes, stacked by layer. {said}.")


def _sizes_title(totals: Mapping[str, Mapping[str, float]]) -> str:
    """Say the finding: what the largest image is to the smallest."""
    packed = {name: total["download_bytes"] for name, total in totals.items()}
    least, most = extremes(packed)
    if len(packed) == 1:
        unpacked = totals[most]["unpacked_bytes"]
        return f"{most}: {amount(packed[most])} to download, {amount(unpacked)} unpacked"
    if packed[most] <= ALIKE * packed[least]:
        return f"All take about as many bytes to download, at most {amount(packed[most])}"
    ratio = (
        f"{times(packed[most], packed[least])} the bytes of {least}" if packed[least] else "most"
    )
    both = f"{amount(packed[most])} against {amount(packed[least])}"
    return f"{most} takes {ratio} to download: {both}"


def shared_layers(variants: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw which layers images share: who has one of them fetches it only once.

    Args:
        variants: for each image's name its layers, lowest first; columns ``instruction``,
            ``digest`` and ``download_bytes``.

    Raises:
        LabError: there are no rows, or a column is missing.
    """
    checked_all("shared layers", variants, "instruction", "digest", "download_bytes#")
    # An image may hold the same layer twice, but nobody fetches it twice.
    alone = {name: rows.drop_duplicates("digest") for name, rows in variants.items()}
    holders = Counter(digest for rows in alone.values() for digest in rows["digest"])
    layer = pd.concat(list(alone.values())).drop_duplicates("digest").set_index("digest")
    sizes = {digest: float(layer["download_bytes"][digest]) for digest in holders}
    shared = sorted((d for d in holders if holders[d] > 1), key=sizes.__getitem__, reverse=True)
    colours = {digest: PALETTE[number % 5] for number, digest in enumerate(shared)}
    # A letter tells layers apart where colours don't, on paper.
    letters = dict(zip(shared, string.ascii_uppercase, strict=False))
    size, unit = byte_unit(max(sum(numbers(rows, "download_bytes")) for rows in alone.values()))
    bars, words = [], {}
    for name, rows in alone.items():
        own = [digest for digest in rows["digest"] if digest in colours]
        total = amount(sum(sizes[digest] for digest in rows["digest"]))
        in_common = f"{amount(sum(sizes[d] for d in own))} of it" if own else "nothing"
        words[name] = f"{total}, {in_common} shared"
        blocks = [
            Block(sizes[digest] / size, colours.get(digest, GREY), telling(text),
                  letters.get(digest, ""))
            for digest, text in zip(rows["digest"], rows["instruction"], strict=True)
        ]  # fmt: skip
        bars.append(Row(name, blocks, words[name]))
    saved = sum((holders[digest] - 1) * sizes[digest] for digest in shared)
    title = _shared_title(len(variants), len(shared), saved)
    told = [
        f"{letters[d]}: {fitted(telling(layer['instruction'][d]), 300, SMALL, keep='ends')}, "
        f"{amount(sizes[d])}"
        for d in shared[:3]
    ]
    rest = f"; and {counted(len(shared) - 3, 'smaller one')}" if len(shared) > 3 else ""
    axes, places = stacked_bars(
        bars, title=title, row=40, note="; ".join(told) + rest + "." if told else "",
        unit=f"{unit} to download (compressed); grey: in this image alone",
    )  # fmt: skip
    _ribbons(axes, places, bars, [list(rows["digest"]) for rows in alone.values()], colours)
    said = "; ".join(
        f"{name}: {counted(len(rows), 'layer')}, {words[name]}" for name, rows in alone.items()
    )
    return Chart(whole(axes), f"Bar chart of layers. {title}. {said}.")


def _shared_title(images: int, layers: int, saved: float) -> str:
    if images == 1:
        return "One image alone shares nothing: add another to compare"
    if not layers:
        return f"These {images} images share no layer: each is fetched whole"
    return (
        f"{counted(layers, 'shared layer')}, in colour: who has pulled one image "
        f"fetches {amount(saved)} less for the " + ("other" if images == 2 else "others")
    )


def _ribbons(
    axes: Axes,
    places: Sequence[float],
    bars: Sequence[Row],
    digests: Sequence[Sequence[str]],
    colours: Mapping[str, str],
) -> None:
    """Join a shared layer's block to the same one in the next image below."""
    spans = []
    for bar, names in zip(bars, digests, strict=True):
        ends = list(itertools.accumulate((block.length for block in bar.blocks), initial=0.0))
        spans.append(dict(zip(names, itertools.pairwise(ends), strict=True)))
    for (upper, above), (lower, below) in itertools.pairwise(zip(places, spans, strict=True)):
        for digest in above.keys() & below.keys():
            (left, right), (low_left, low_right) = above[digest], below[digest]
            top, bottom = upper + THICK / 2, lower - THICK / 2
            corners = [(left, top), (right, top), (low_right, bottom), (low_left, bottom)]
            axes.add_patch(Polygon(corners, facecolor=colours[digest], alpha=0.3, linewidth=0))


def build_times(builds: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw how long builds took, step by step; with stages, each of them on a row of its own.

    Args:
        builds: for each build's name its steps; columns ``instruction``, ``cached``, ``seconds``,
            and ``stage`` in a build that has several (empty for one without a name).

    Raises:
        LabError: there are no rows, or a column is missing.
    """
    checked_all("build times", builds, "instruction", "cached", "seconds#")
    stages = {name: _stages(steps) for name, steps in builds.items()}
    has_stages = any(stage for parts in stages.values() for stage, _ in parts)
    rows, said = [], []
    for name, parts in stages.items():
        begin, worked = 0.0, 0
        for stage, steps in parts:
            blocks = [
                Block(float(step["seconds"]), GREY if step["cached"] else (PALE, DEEP)[number % 2],
                      "" if step["cached"] else str(step["instruction"]))
                for number, step in enumerate(steps)
            ]  # fmt: skip
            had_work = [not s["cached"] and s["seconds"] >= _NOTICED for s in steps]
            seconds = sum(block.length for block in blocks)
            words = f"{duration(seconds)}, {counted(sum(had_work), 'step')} had work to do"
            label, group = (stage or "all steps", name) if has_stages else (name, "")
            rows.append(Row(label, blocks, words, group, begin))
            begin, worked = begin + seconds, worked + sum(had_work)
        total = f"{name}: {duration(begin)}, {counted(worked, 'step')} had work to do"
        by = [f"{row.name} {duration(row.end - row.begin)}" for row in rows[-len(parts) :]]
        said.append(f"{total} (by stage: {listed(by)})" if len(parts) > 1 else total)
    axes, _ = stacked_bars(
        rows,
        title="Each block is a step that had work to do; steps from the cache take no time"
        + (". A stage's row begins where the one before it ended" if has_stages else ""),
        unit="seconds of work",
    )
    return Chart(whole(axes), f"Bar chart of build times. {'; '.join(said)}.")


def _stages(steps: pd.DataFrame) -> list[tuple[str, list[Mapping[Any, Any]]]]:
    """Cut a build's steps where a stage ends; a build of one stage has no name for it."""
    runs: list[tuple[str, list[Mapping[Any, Any]]]] = []
    for step in steps.to_dict("records"):
        stage = str(step.get("stage") or "")
        # Before the first stage there are only arguments, which belong to it as well as to none.
        only_arguments = len(runs) == 1 and not runs[0][0] and all(
            str(one["instruction"]).upper().startswith("ARG") for one in runs[0][1]
        )  # fmt: skip
        if runs and (runs[-1][0] == stage or only_arguments):
            runs[-1] = (stage, [*runs[-1][1], step])
        else:
            runs.append((stage, [step]))
    if len(runs) == 1:
        return runs
    last = len(runs)
    return [
        (stage or ("the last stage" if number == last else f"stage {number}"), own)
        for number, (stage, own) in enumerate(runs, start=1)
    ]


def pull_times(
    variants: Mapping[str, float], *, measured: Mapping[str, Sequence[float]] | None = None
) -> Chart:
    """Draw how long pulls take: computed for three lines, and as measured.

    What is computed is the bytes over the line's speed, and nothing else: no unpacking, no waiting.

    Args:
        variants: bytes to download by image.
        measured: seconds of each measured pull by image, as many as there were; the middle one
            is the bar. An image may be left out.

    Raises:
        LabError: there is nothing to draw, a number is missing or negative, or something was
            measured that has no bytes.
    """
    checked_all("pull times", variants)
    checked("pull times", pd.DataFrame({"bytes": list(variants.values())}), "bytes#")
    runs = {name: list(seconds) for name, seconds in (measured or {}).items() if len(seconds)}
    for name, seconds in runs.items():
        checked("pull times", pd.DataFrame({"seconds": seconds}), "seconds#", name=name)
        if name not in variants:
            raise LabError(
                f"drawing pull times of '{name}': it was measured, but its bytes are not given, "
                f"only those of {quoted(variants)}. Use the same names."
            )
    took = {
        name: {line: size * 8 / (speed * 1e6) for line, speed in LINES.items()}
        for name, size in variants.items()
    }
    middle = {name: statistics.median(seconds) for name, seconds in runs.items()}
    rows = []
    for name, lines in took.items():
        for (line, alone), colour in zip(lines.items(), (DEEP, BLUE, PALE), strict=True):
            label = f"{line}, {LINES[line]:,} Mbit/s"
            rows.append(Row(label, [Block(alone, colour)], duration(alone), name))
        if name in runs:
            count = f" ({counted(len(runs[name]), 'run')})" if len(runs[name]) > 1 else ""
            bar = [Block(middle[name], "white")]
            words = duration(middle[name]) + count
            rows.append(Row("measured here", bar, words, name, dots=runs[name]))
    several = any(len(seconds) > 1 for seconds in runs.values())
    least, most = extremes(variants)
    title = f"On a slow line a pull of {most} takes {duration(took[most]['slow'])}"
    if len(variants) > 1:
        title += f", of {least} {duration(took[least]['slow'])}"
    axes, _ = stacked_bars(
        rows, title=f"{title}: computed from the bytes", unit="seconds", row=21, thick=0.74,
        note="Computed: bytes to download, divided by the line's speed, nothing else."
        + (" Measured: from the registry, on this machine." if runs else "")
        + (" The bar is the middle run, each dot is a run." if several else ""),
    )  # fmt: skip
    said = []
    for name, lines in took.items():
        words = listed([f"{duration(own)} on a {line} line" for line, own in lines.items()])
        said.append(f"{name}: {words}")
        if name in runs:
            said[-1] += f"; measured {duration(middle[name])}"
    speeds = listed([f"{line} is {speed:,} Mbit/s" for line, speed in LINES.items()])
    return Chart(
        whole(axes),
        "Bar chart of times to pull, computed from the bytes to download alone. "
        f"{'. '.join(said)}. {speeds[:1].upper()}{speeds[1:]}.",
    )
