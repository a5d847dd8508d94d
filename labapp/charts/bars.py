"""Horizontal bars: layers, sizes, pushes, builds, pulls, and how much there is to attack.

Every chart here is rows for :func:`stacked_bars`, a title that says the finding, and the numbers in
words; the last has small bars side by side.
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from labapp.charts.figure import Chart, canvas, fitted, frame, ink, text_width, wrapped, write
from labapp.charts.style import BLUE, DARK, DEEP, GREY, MARGIN, PALE, PALETTE, SMALL, TEXT, WIDTH
from labapp.charts.words import ALIKE, checked, checked_all, counted, extremes, listed, times
from labapp.feedback import amount

_HIGH, _THICK = 25.0, 0.66
"""How high a row is, and how much of it a bar fills."""

LINES = {"slow": 10, "typical": 100, "fast": 1000}
"""The lines that a pull is computed for, in megabits (a million bits) a second."""

_NOTICED = 0.05
"""A step that takes less, in seconds, only wrote down a setting."""

_NAME, _KEY = 230.0, 14.0
"""How wide a bar's name may get, in two lines, and how high a line of the key is."""

_ROW, _HEAD, _GAP = 18.0, 24.0, 24.0
"""Of a small chart: the height of a bar's row and of the name above, and what is between two."""

_KINDS = {
    "base": (DEEP, "base: system and interpreter, the lowest layers"),
    "tools": ("#ffa90e", "tools: what a package manager installed on top"),
    "libraries": ("#92dadd", "libraries: what the application needs from others"),
    "application": ("#832db6", "application: all else that was copied, made or set"),
}
"""What a layer is: its colour, and what the key says of it."""

_LOWEST = re.compile(r"base image |# debian\.sh|(ADD|COPY) .* /$|RUN set -eux;")
_IN_PUBLIC_BASES = re.compile(r"RUN set -eux;")
_TOOLS = re.compile(r"RUN .*\b(apt|apt-get|apk|dnf|microdnf|yum|zypper)\b.* (install|add)\b")
_LIBRARIES = re.compile(r"RUN .*\b(pip|uv)\b.* -r\b|RUN .*\bnpm (ci|install)\b|COPY .*\bwheels$")


@dataclass(frozen=True)
class Block:
    """A part of a bar; where there is no room for its text, the letter before it stands alone."""

    length: float
    colour: str = BLUE
    text: str = ""
    letter: str = ""


@dataclass(frozen=True)
class Row:
    """A bar: the name before it, its blocks from left to right, and the words behind its end.

    Rows of one ``group`` stand together; what was ``measured`` is hatched.
    """

    name: str
    blocks: Sequence[Block]
    words: str
    group: str = ""
    begin: float = 0.0
    measured: bool = False

    @property
    def end(self) -> float:
        """How far the row reaches, in the axis' unit."""
        return self.begin + sum(block.length for block in self.blocks)


def stacked_bars(
    rows: Sequence[Row],
    *,
    title: str,
    unit: str,
    alt: str,
    note: str = "",
    key: Sequence[tuple[str, str]] = (),
) -> Chart:
    """Draw rows, the first on top; those of another group stand half a row apart.

    The ``key``, below the axis, says what colours mean.
    """
    starts = [number > 0 and row.group != rows[number - 1].group for number, row in enumerate(rows)]
    places = [number + 0.5 * sum(starts[: number + 1]) for number in range(len(rows))]
    names = [_named(row.name) for row in rows]
    groups = {row.group: wrapped(row.group, 140, TEXT, bold=True)[:2] for row in rows}
    of_groups = max(text_width(line, TEXT, bold=True) for g in groups.values() for line in g)
    left = MARGIN + max(text_width(line, TEXT) for name in names for line in name.split("\n")) + 8
    left += of_groups + 12 if of_groups else 0
    axes = frame(
        title=title, height=_HIGH * (places[-1] + 1), left=left, right=20, note=note,
        bottom=40 + _KEY * len(key),
    )  # fmt: skip
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_ylim(places[-1] + 0.5, -0.5)
    axes.set_yticks(places, names, fontsize=TEXT, parse_math=False)
    axes.set_xlabel(unit, color=DARK, fontsize=SMALL, labelpad=6, parse_math=False)
    room = WIDTH - left - 20
    words = [fitted(row.words, 0.7 * room, TEXT) for row in rows]
    scale = _scale([row.end for row in rows], words, room)
    axes.set_xlim(0, room / scale)
    for one, place, text in zip(rows, places, words, strict=True):
        _draw(axes, one, place, scale)
        write(axes, one.end + 5 / scale, place, text, size=TEXT)
    for group, lines in groups.items():
        own = [place for place, other in zip(places, rows, strict=True) if other.group == group]
        write(
            axes, (MARGIN - left) / scale, statistics.mean(own), "\n".join(lines), size=TEXT,
            weight="bold",
        )  # fmt: skip
    for number, (colour, text) in enumerate(key):
        place = places[-1] + 0.5 + (40 + _KEY * (number + 0.5)) / _HIGH
        write(axes, (MARGIN - left) / scale, place, "■", size=TEXT, color=colour)
        write(axes, (MARGIN - left + 14) / scale, place, text)
    # A bar of nothing is seen to be one.
    axes.axvline(0, color=GREY, linewidth=1, zorder=0)
    return Chart(axes, alt)


def _named(name: str) -> str:
    """Return a bar's name in one line, or else in two."""
    first, *more = wrapped(name, _NAME, TEXT)
    return "\n".join([first, *([fitted(" ".join(more), _NAME, TEXT)] if more else [])])


def _scale(lengths: Iterable[float], words: Sequence[str], room: float) -> float:
    """Return the most points a unit may have, so that the words behind bars fit into a width."""
    scales = [
        (room - 6 - text_width(text, TEXT)) / length
        for length, text in zip(lengths, words, strict=True)
        if length > 0
    ]
    return min(scales, default=room)


def _draw(axes: Axes, row: Row, place: float, scale: float) -> None:
    edge: dict[str, Any] = {}
    if row.measured:
        edge = {"edgecolor": DARK, "hatch": "////", "linewidth": 0.8}
    elif len(row.blocks) > 1:
        edge = {"edgecolor": "white", "linewidth": 0.5}
    lengths = [block.length for block in row.blocks]
    lefts = list(itertools.accumulate(lengths, initial=row.begin))[:-1]
    colours = [block.colour for block in row.blocks]
    places = [place] * len(lengths)
    axes.barh(places, lengths, left=lefts, height=_THICK, color=colours, **edge)
    for block, left in zip(row.blocks, lefts, strict=True):
        text = _inside(block, block.length * scale - 4)
        middle = left + block.length / 2
        write(axes, middle, place, text, ha="center", color=ink(block.colour))


def _inside(block: Block, room: float) -> str:
    """Return a block's letter and text; instructions often begin alike, so their end is kept."""
    words = block.text.split()
    ends = [" ".join(words[start:]) for start in range(1, len(words))]
    texts = [" ".join(words), *(f"…{end}" for end in ends if len(end) > 8), ""]
    shown = [f"{block.letter} {text}".strip() for text in texts]
    return next((text for text in shown if text_width(text, SMALL) <= room), "")


def _telling(instruction: object) -> str:
    """Return an instruction without the tidying up at its end, which tells nothing."""
    return re.sub(r" ?&& ?rm -.*$", "", " ".join(str(instruction).split()))


def _kinds(instructions: Iterable[object]) -> list[str]:
    """Return what each layer is, lowest first, as far as its instruction tells."""
    kinds: list[str] = []
    for text in (" ".join(str(each).split()) for each in instructions):
        in_base = _IN_PUBLIC_BASES if kinds else _LOWEST
        if in_base.match(text) and set(kinds) <= {"base"}:
            kinds.append("base")
        elif _TOOLS.match(text):
            kinds.append("tools")
        else:
            kinds.append("libraries" if _LIBRARIES.match(text) else "application")
    return kinds


def _key(kinds: Iterable[str]) -> list[tuple[str, str]]:
    there = set(kinds)
    return [look for kind, look in _KINDS.items() if kind in there]


def _byte_unit(largest: float) -> tuple[float, str]:
    """Return how many bytes the unit of an axis has (a power of ten), and its name."""
    for size, name in ((1e9, "gigabytes"), (1e6, "megabytes"), (1e3, "kilobytes")):
        if largest >= 2 * size:
            return size, name
    return 1.0, "bytes"


def layers(rows: pd.DataFrame) -> Chart:
    """Draw what each layer of an image adds to a pull.

    Args:
        rows: a row a layer, lowest first; columns ``instruction`` and ``download_bytes``.
    """
    checked("layers", rows, "instruction", "download_bytes")
    names = [" ".join(str(text).split()) for text in rows["instruction"]]
    weights = list(rows["download_bytes"])
    total, most = sum(weights), max(weights)
    count = counted(len(names), "layer")
    share = f", {most / total:.0%} of the download" if total else ""
    largest = fitted(names[weights.index(most)], 500, SMALL)
    return _bytes_chart(
        [(name, size, amount(size)) for name, size in zip(names, weights, strict=True)],
        kinds=_kinds(names),
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
    """
    checked_all("sizes", values)
    rows = [(name, value, amount(value)) for name, value in values.items()]
    said = "; ".join(f"{name}: {words}" for name, _, words in rows)
    return _bytes_chart(rows, title=title, unit="{}", alt=f"Bar chart. {title}. {said}.")


def pushes(rows: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw how much of an image each push sent.

    Args:
        rows: for each push's name its layers; columns ``bytes`` (compressed) and ``outcome``
            (``sent``, ``mounted`` or ``already there``).
    """
    checked_all("pushes", rows, "bytes", "outcome")
    drawn = []
    for name, table in rows.items():
        sent = table.loc[table["outcome"] == "sent", "bytes"]
        words = f"{amount(sent.sum())}: {len(sent)} of {counted(len(table), 'layer')}"
        drawn.append((name, float(sent.sum()), words))
    largest = amount(max(table["bytes"].sum() for table in rows.values()))
    said = "; ".join(f"{name}: {words}" for name, _, words in drawn)
    return _bytes_chart(
        drawn,
        title=f"The image has {largest}. Each push sent only what was missing",
        unit="{} sent (layers, compressed)",
        alt=f"Bar chart of pushes. {said}.",
    )


def _bytes_chart(
    rows: Sequence[tuple[str, float, str]], *, title: str, unit: str, alt: str,
    kinds: Sequence[str] = (),
) -> Chart:  # fmt: skip
    """Draw a name, bytes and words a row; ``{}`` in the axis' unit becomes the fitting one."""
    size, word = _byte_unit(max(value for _, value, _ in rows))
    colours = [_KINDS[kind][0] for kind in kinds] or [BLUE] * len(rows)
    bars = [
        Row(name, [Block(value / size, colour)], words)
        for (name, value, words), colour in zip(rows, colours, strict=True)
    ]
    return stacked_bars(bars, title=title, unit=unit.format(word), alt=alt, key=_key(kinds))


def variant_sizes(variants: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw what images weigh, packed for the way and unpacked, stacked by layer.

    Args:
        variants: for each image's name its layers, lowest first; columns ``instruction``,
            ``download_bytes`` and ``unpacked_bytes``.
    """
    states = {"download_bytes": "to download", "unpacked_bytes": "unpacked"}
    checked_all("sizes of variants", variants, "instruction", *states)
    size, unit = _byte_unit(max(table[list(states)].sum().max() for table in variants.values()))
    rows, said, there = [], [], set[str]()
    for name, table in variants.items():
        kinds = _kinds(table["instruction"])
        there.update(kinds)
        totals = {state: amount(table[column].sum()) for column, state in states.items()}
        for column, state in states.items():
            blocks = [
                Block(value / size, _KINDS[kind][0], _telling(text))
                for value, text, kind in zip(
                    table[column], table["instruction"], kinds, strict=True
                )
            ]
            rows.append(Row(state, blocks, totals[state], name))
        both = ", ".join(f"{total} {state}" for state, total in totals.items())
        said.append(f"{name}: {both}, in {counted(len(table), 'layer')}")
    packed = {name: float(table["download_bytes"].sum()) for name, table in variants.items()}
    least, most = extremes(packed)
    if len(variants) == 1:
        title = said[0].rpartition(",")[0]
    elif packed[most] <= ALIKE * packed[least]:
        title = f"All take about as many bytes to download, at most {amount(packed[most])}"
    else:
        title = f"{most} takes {times(packed[most], packed[least])} the bytes of {least} to "
        title += f"download: {amount(packed[most])} against {amount(packed[least])}"
    unit += "; each block is a layer, the lowest first"
    alt = f"Bar chart of sizes, stacked by layer. {'; '.join(said)}."
    return stacked_bars(rows, title=title, unit=unit, alt=alt, key=_key(there))


def shared_layers(variants: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw which layers images share: who has one of them fetches it only once.

    Args:
        variants: for each image's name its layers, lowest first; columns ``instruction``,
            ``digest`` and ``download_bytes``.
    """
    columns = ["instruction", "digest", "download_bytes"]
    checked_all("shared layers", variants, *columns)
    # An image may hold the same layer twice, but nobody fetches it twice.
    alone = {name: rows.drop_duplicates("digest") for name, rows in variants.items()}
    every = pd.concat(list(alone.values()))
    every["holders"] = every.groupby("digest")["digest"].transform("size")
    shared = every[every["holders"] > 1].drop_duplicates("digest")
    shared = shared.sort_values("download_bytes", ascending=False, kind="stable")
    colours = dict(zip(shared["digest"], itertools.cycle(PALETTE[:5]), strict=False))
    # A letter tells layers apart where colours don't, on paper.
    letters = dict(zip(shared["digest"], string.ascii_letters.swapcase(), strict=False))
    size, unit = _byte_unit(max(rows["download_bytes"].sum() for rows in alone.values()))
    bars, said = [], []
    for name, rows in alone.items():
        common = rows.loc[rows["digest"].isin(shared["digest"]), "download_bytes"]
        words = f"{amount(rows['download_bytes'].sum())}, "
        words += f"{amount(common.sum())} of it shared" if len(common) else "nothing shared"
        blocks = [
            Block(weight / size, colours.get(digest, GREY), _telling(text), letters.get(digest, ""))
            for text, digest, weight in rows[columns].itertuples(index=False)
        ]
        bars.append(Row(name, blocks, words))
        said.append(f"{name}: {counted(len(rows), 'layer')}, {words}")
    title = f"These {len(variants)} images share no layer: each is fetched whole"
    if len(variants) == 1:
        title = "One image alone shares nothing: add another to compare"
    elif len(shared):
        saved = amount(((shared["holders"] - 1) * shared["download_bytes"]).sum())
        title = f"{counted(len(shared), 'shared layer')}, in colour: who has pulled one image "
        title += f"fetches {saved} less for the {'other' if len(variants) == 2 else 'others'}"
    told = [
        f"{letters[digest]}: {fitted(_telling(text), 300, SMALL)}, {amount(weight)}"
        for text, digest, weight in shared[columns].head(3).itertuples(index=False)
    ]
    if len(shared) > 3:
        told.append(f"and {counted(len(shared) - 3, 'smaller one')}")
    note = "; ".join(told) + "." if told else ""
    unit += " to download (compressed); grey: in this image alone"
    alt = f"Bar chart of layers. {title}. {'; '.join(said)}."
    return stacked_bars(bars, title=title, unit=unit, alt=alt, note=note)


def build_times(builds: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw how long builds took, step by step; with stages, each of them on a row of its own.

    Args:
        builds: for each build's name its steps; columns ``instruction``, ``cached``, ``seconds``,
            and ``stage`` in a build that has several (empty for one without a name).
    """
    checked_all("build times", builds, "instruction", "cached", "seconds")
    stages = {name: _stages(steps) for name, steps in builds.items()}
    has_stages = any(stage for parts in stages.values() for stage, _ in parts)
    ran = pd.concat([steps[steps["cached"].astype(str) != "True"] for steps in builds.values()])
    longest = ran.groupby("instruction", sort=False)["seconds"].max()
    seen = 0.02 * max(steps["seconds"].sum() for steps in builds.values())
    most = longest[longest >= seen].nlargest(len(PALETTE) - 1)
    told = [text for text in longest.index if text in most]
    looks = {each: look for each, *look in zip(told, PALETTE, string.ascii_uppercase, strict=False)}
    key = [
        (colour, f"{letter}  {fitted(_telling(each), WIDTH - 60, SMALL)}")
        for each, (colour, letter) in looks.items()
    ]
    key += [(GREY, "all other steps")] * (len(longest) > len(told))
    rows, said = [], []
    for name, parts in stages.items():
        begin, worked = 0.0, 0
        by = []
        for stage, steps in parts:
            blocks = []
            for step in steps:
                known = {} if step.cached else looks
                colour, letter = known.get(step.instruction, (GREY, ""))
                blocks.append(Block(step.seconds, colour, letter=letter))
            count = sum(not step.cached and step.seconds >= _NOTICED for step in steps)
            seconds = sum(block.length for block in blocks)
            words = f"{duration(seconds)}, {counted(count, 'step')} ran"
            label, group = (stage or "all steps", name) if has_stages else (name, "")
            rows.append(Row(label, blocks, words, group, begin))
            by.append(f"{label} {duration(seconds)}")
            begin, worked = begin + seconds, worked + count
        said.append(f"{name}: {duration(begin)}, {counted(worked, 'step')} ran")
        if len(parts) > 1:
            said[-1] += f" (by stage: {listed(by)})"
    title = "A step has the same colour in every bar; one from the cache takes no time"
    if has_stages:
        title += ". A stage's row begins where the one before it ended"
    alt = f"Bar chart of build times. {'; '.join(said)}."
    return stacked_bars(rows, title=title, unit="seconds of work", alt=alt, key=key)


def _stages(steps: pd.DataFrame) -> list[tuple[str, list[Any]]]:
    """Cut a build's steps where a stage ends; a build of one stage has no name for it."""
    rows: Iterable[Any] = steps.assign(stage=steps.get("stage", "")).itertuples()
    runs = [
        (name or "", list(own)) for name, own in itertools.groupby(rows, lambda step: step.stage)
    ]
    # Before the first stage there are only arguments, which take no time.
    if not runs[0][0] and all(step.instruction.upper().startswith("ARG") for step in runs[0][1]):
        runs = runs[1:] or runs
    if len(runs) == 1:
        return runs
    last = len(runs)
    return [
        (name or ("the last stage" if number == last else f"stage {number}"), own)
        for number, (name, own) in enumerate(runs, start=1)
    ]


def duration(seconds: float) -> str:
    """Return a time as a person says it: ``0.4 s``, ``20 s``, ``3 min 23 s``."""
    if seconds < 0.005:
        return "0 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds >= 0.05 else f"{seconds:.2f} s"
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def pull_times(
    variants: Mapping[str, float], *, measured: Mapping[str, float] | None = None
) -> Chart:
    """Draw how long pulls take: computed for three lines, and as measured.

    What is computed is the bytes over the line's speed, and nothing else: no unpacking, no waiting.

    Args:
        variants: bytes to download by image.
        measured: seconds of a measured pull by image. An image may be left out.
    """
    checked_all("pull times", variants)
    rows, said, slow = [], [], {}
    for name, size in variants.items():
        took = {line: size * 8 / (speed * 1e6) for line, speed in LINES.items()}
        slow[name] = duration(took["slow"])
        for (line, seconds), colour in zip(took.items(), (DEEP, BLUE, PALE), strict=True):
            label = f"{line}, {LINES[line]:,} Mbit/s"
            rows.append(Row(label, [Block(seconds, colour)], duration(seconds), name))
        words = listed([f"{duration(seconds)} on a {line} line" for line, seconds in took.items()])
        said.append(f"{name}: {words}")
        if measured and name in measured:
            block, words = Block(measured[name], "white"), duration(measured[name])
            rows.append(Row("measured here", [block], words, name, measured=True))
            said[-1] += f"; measured {words}"
    least, most = extremes(variants)
    title = f"On a slow line a pull of {most} takes {slow[most]}"
    title += f", of {least} {slow[least]}" if len(variants) > 1 else ""
    note = "Computed: bytes to download, divided by the line's speed, nothing else."
    note += " Measured: from the registry, on this machine." if measured else ""
    speeds = listed([f"{line} is {speed:,} Mbit/s" for line, speed in LINES.items()])
    alt = "Bar chart of times to pull, computed from the bytes to download alone. "
    alt += f"{'. '.join(said)}. {speeds[:1].upper()}{speeds[1:]}."
    title += ": computed from the bytes"
    return stacked_bars(rows, title=title, unit="seconds", alt=alt, note=note)


def surface(variants: Mapping[str, Mapping[str, float | None]]) -> Chart:
    """Draw how much there is to attack and to patch: a small chart for each kind of thing.

    Args:
        variants: for each image's name how many it has of each kind, such as
            ``{"packages": 431, "shells": 2}``. What is not known may be left out, or NaN.
    """
    checked_all("surface", variants)
    counts = pd.DataFrame(variants).astype(float)
    names = [fitted(name, 110, TEXT) for name in variants]
    left = MARGIN + max(text_width(name, TEXT) for name in names) + 8
    columns = 2 if len(counts) in (2, 4) else 3
    wide = (WIDTH - left - MARGIN + _GAP) / columns - _GAP
    high = _HEAD + _ROW * len(names)
    axes = canvas(
        title=f"{_surface_finding(counts)}Fewer is better; each small chart has a scale of its own",
        height=math.ceil(len(counts) / columns) * (high + 8) - 8, left=left,
    )  # fmt: skip
    said = []
    for place, (kind, own) in enumerate(counts.iterrows()):
        line, column = divmod(place, columns)
        x, y = column * (wide + _GAP), line * (high + 8)
        head = fitted(str(kind)[:1].upper() + str(kind)[1:], wide, TEXT, bold=True)
        write(axes, x, y + _HEAD / 2 + 2, head, size=TEXT, weight="bold")
        axes.plot([x, x], [y + _HEAD, y + high], color=GREY, linewidth=1, zorder=0)
        words = [_number(value) for value in own]
        middles = [y + _HEAD + (number + 0.5) * _ROW for number in range(len(names))]
        lengths = own.fillna(0) * _scale(own, words, wide)
        axes.barh(middles, lengths, left=x, height=_ROW * _THICK, color=BLUE)
        for name, middle, length, text in zip(names, middles, lengths, words, strict=True):
            write(axes, x + length + 5, middle, text, size=TEXT)
            if not column:
                write(axes, -8, middle, name, size=TEXT, ha="right")
        every = listed([f"{name} {text}" for name, text in zip(variants, words, strict=True)])
        said.append(f"{kind}: {every}")
    return Chart(axes, f"Small bar charts, fewer is better. {'; '.join(said)}.")


def _surface_finding(counts: pd.DataFrame) -> str:
    """Say how far the images are apart in the first kind of thing that is known of all."""
    for kind, own in counts.dropna().iterrows():
        if own.min() < own.max():
            most, least = own.idxmax(), own.idxmin()
            return f"{most} has {_number(own.max())} {kind}, {least} {_number(own.min())}. "
    return ""


def _number(value: float) -> str:
    return "not known" if math.isnan(value) else f"{value:,.0f}"
