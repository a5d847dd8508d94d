"""Horizontal bars: layers, sizes, pushes, builds, pulls, and how much there is to attack.

Every chart here is rows for :func:`stacked_bars`, a title that says the finding, and the numbers in
words.
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
import string
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from labapp.charts.figure import Chart, fitted, frame, ink, text_width, wrapped, write
from labapp.charts.style import BLUE, DARK, DEEP, GREY, MARGIN, PALE, PALETTE, SMALL, TEXT, WIDTH
from labapp.charts.words import ALIKE, checked, checked_all, counted, extremes, times
from labapp.feedback import amount

_LOW, _HIGH, _THICK = 19.0, 25.0, 0.66
"""How high a row is, with a name in one line or in two, and how much of it a bar fills."""

LINES = {"slow": 10, "typical": 100, "fast": 1000}
"""The lines that a pull is computed for, in megabits (a million bits) a second."""

_NOTICED = 0.05
"""A step that takes less, in seconds, only wrote down a setting."""

_NAME, _KEY = 230.0, 14.0
"""How wide a bar's name may get, in two lines, and how high a line of the key is."""

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
        """How far the row reaches."""
        return self.begin + sum(block.length for block in self.blocks)


def stacked_bars(
    rows: Sequence[Row],
    *,
    title: str,
    axis: str,
    ticks: str = "B",
    note: str = "",
    key: Sequence[tuple[str, str]] = (),
) -> Chart:
    """Draw rows, the first on top; those of another group stand half a row apart.

    The ``axis`` says what is counted, and its ``ticks`` how: ``B`` for bytes, or a format. The
    ``key``, below it, says what colours mean, and the alternative text all that the rows say.
    """
    starts = [number > 0 and row.group != rows[number - 1].group for number, row in enumerate(rows)]
    places = [number + 0.5 * sum(starts[: number + 1]) for number in range(len(rows))]
    names = ["\n".join(wrapped(row.name, _NAME, TEXT, most=2)) for row in rows]
    groups = {row.group: wrapped(row.group, 140, TEXT, bold=True, most=2) for row in rows}
    of_groups = max(text_width(line, TEXT, bold=True) for g in groups.values() for line in g)
    left = MARGIN + max(text_width(line, TEXT) for name in names for line in name.split("\n")) + 8
    left += of_groups + 12 if of_groups else 0
    high = _HIGH if "\n" in "".join(names) else _LOW
    axes = frame(
        title=title, height=high * (places[-1] + 1), left=left, right=20, note=note,
        bottom=40 + _KEY * len(key),
    )  # fmt: skip
    if ticks == "B":
        axes.locator_params(axis="x", integer=True)  # there is no half byte
    axes.xaxis.set_major_formatter(EngFormatter("B") if ticks == "B" else ticks)
    axes.set_ylim(places[-1] + 0.5, -0.5)
    axes.set_yticks(places, names, fontsize=TEXT, parse_math=False)
    axes.set_xlabel(axis, color=DARK, fontsize=SMALL, labelpad=6, parse_math=False)
    room = WIDTH - left - 20
    words = [fitted(row.words, 0.7 * room, TEXT) for row in rows]
    # The most points a unit may have, so that the words behind bars have room.
    widths = [room - 6 - text_width(text, TEXT) for text in words]
    scales = [wide / row.end for row, wide in zip(rows, widths, strict=True) if row.end > 0]
    scale = min(scales, default=room)
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
        place = places[-1] + 0.5 + (40 + _KEY * (number + 0.5)) / high
        write(axes, (MARGIN - left) / scale, place, "■", size=TEXT, color=colour)
        write(axes, (MARGIN - left + 14) / scale, place, text)
    # A bar of nothing is seen to be one.
    axes.axvline(0, color=GREY, linewidth=1, zorder=0)
    said = [fitted(f"{row.group} {row.name}", 500, SMALL) + f": {row.words}" for row in rows]
    return Chart(axes, f"Bar chart. {title}. {'; '.join(said)}. {note}".strip())


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


def _looks(instructions: Iterable[object]) -> list[tuple[str, str]]:
    """Return the look of what each layer is, lowest first, as far as its instruction tells."""
    kinds: list[str] = []
    for text in (" ".join(str(each).split()) for each in instructions):
        in_base = _IN_PUBLIC_BASES if kinds else _LOWEST
        if in_base.match(text) and set(kinds) <= {"base"}:
            kinds.append("base")
        elif _TOOLS.match(text):
            kinds.append("tools")
        else:
            kinds.append("libraries" if _LIBRARIES.match(text) else "application")
    return [_KINDS[kind] for kind in kinds]


def _key(looks: Container[tuple[str, str]]) -> list[tuple[str, str]]:
    return [look for look in _KINDS.values() if look in looks]


def layers(rows: pd.DataFrame) -> Chart:
    """Draw what each layer of an image adds to a pull.

    Args:
        rows: a row a layer, lowest first; columns ``instruction`` and ``download_bytes``.
    """
    checked("layers", rows, "instruction", "download_bytes")
    weights, looks = rows["download_bytes"], _looks(rows["instruction"])
    title = f"{counted(len(rows), 'layer')}, {amount(weights.sum())} to download"
    if len(rows) > 1 and weights.sum():
        title += f", {weights.max() / weights.sum():.0%} of it in the largest"
    bars = [
        Row(str(text), [Block(size, colour)], amount(size))
        for text, size, (colour, _) in zip(rows["instruction"], weights, looks, strict=True)
    ]
    title += "; the first instruction is on top"
    return stacked_bars(bars, title=title, axis="to download (compressed)", key=_key(looks))


def sizes(values: Mapping[str, float], *, title: str) -> Chart:
    """Draw a few amounts of bytes, one bar each.

    Args:
        values: bytes by name.
        title: what the bars have in common.
    """
    checked_all("sizes", values)
    rows = [Row(name, [Block(value)], amount(value)) for name, value in values.items()]
    return stacked_bars(rows, title=title, axis="size")


def pushes(rows: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw how much of an image each push sent.

    Args:
        rows: for each push's name its layers; columns ``bytes`` (compressed) and ``outcome``
            (``sent``, ``mounted`` or ``already there``).
    """
    checked_all("pushes", rows, "bytes", "outcome")
    bars = []
    for name, table in rows.items():
        sent = table.loc[table["outcome"] == "sent", "bytes"]
        words = f"{amount(sent.sum())}: {len(sent)} of {counted(len(table), 'layer')}"
        bars.append(Row(name, [Block(float(sent.sum()))], words))
    largest = amount(max(table["bytes"].sum() for table in rows.values()))
    title = f"The image has {largest}. Each push sent only what was missing"
    return stacked_bars(bars, title=title, axis="sent (layers, compressed)")


def variant_sizes(variants: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw what images weigh, packed for the way and unpacked, stacked by layer.

    Args:
        variants: for each image's name its layers, lowest first; columns ``instruction``,
            ``download_bytes`` and ``unpacked_bytes``.
    """
    checked_all("sizes of variants", variants, "instruction", "download_bytes", "unpacked_bytes")
    rows, looks, packed = [], set[tuple[str, str]](), dict[str, float]()
    for name, table in variants.items():
        own = _looks(table["instruction"])
        looks.update(own)
        packed[name] = float(table["download_bytes"].sum())
        count = f", {counted(len(table), 'layer')}"
        for state, weights, more in (
            ("to download", table["download_bytes"], count),
            ("unpacked", table["unpacked_bytes"], ""),
        ):
            blocks = [
                Block(size, colour, _telling(text))
                for size, text, (colour, _) in zip(weights, table["instruction"], own, strict=True)
            ]
            rows.append(Row(state, blocks, amount(weights.sum()) + more, name))
    least, most = extremes(packed)
    if len(variants) == 1:
        title = f"{most} has {amount(packed[most])} to download"
    elif packed[most] <= ALIKE * packed[least]:
        title = f"All take about as many bytes to download, at most {amount(packed[most])}"
    else:
        title = f"{most} takes {times(packed[most], packed[least])} the bytes of {least} to "
        title += f"download: {amount(packed[most])} against {amount(packed[least])}"
    axis = "each block is a layer, the lowest first"
    return stacked_bars(rows, title=title, axis=axis, key=_key(looks))


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
    bars = []
    for name, rows in alone.items():
        common = rows.loc[rows["digest"].isin(shared["digest"]), "download_bytes"]
        words = f"{amount(rows['download_bytes'].sum())} in {counted(len(rows), 'layer')}, "
        words += f"{amount(common.sum())} of it shared" if len(common) else "nothing shared"
        blocks = [
            Block(weight, colours.get(digest, GREY), _telling(text), letters.get(digest, ""))
            for text, digest, weight in rows[columns].itertuples(index=False)
        ]
        bars.append(Row(name, blocks, words))
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
    axis = "to download (compressed); grey: in this image alone"
    return stacked_bars(bars, title=title, axis=axis, note=note)


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
    rows = []
    for name, parts in stages.items():
        begin, group = 0.0, ""
        if has_stages:
            group = f"{name} ({duration(sum(step.seconds for _, own in parts for step in own))})"
        for stage, steps in parts:
            blocks = []
            for step in steps:
                known = {} if step.cached else looks
                colour, letter = known.get(step.instruction, (GREY, ""))
                blocks.append(Block(step.seconds, colour, letter=letter))
            count = sum(not step.cached and step.seconds >= _NOTICED for step in steps)
            seconds = sum(block.length for block in blocks)
            words = f"{duration(seconds)}, {counted(count, 'step')} ran"
            label = (stage or "all steps") if has_stages else name
            rows.append(Row(label, blocks, words, group, begin))
            begin += seconds
    title = "A step has the same colour in every bar; one from the cache takes no time"
    if has_stages:
        title += ". A stage's row begins where the one before it ended"
    return stacked_bars(rows, title=title, axis="seconds of work", ticks="{x:,g}", key=key)


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
    rows, slow = [], dict[str, str]()
    for name, size in variants.items():
        for (line, speed), colour in zip(LINES.items(), (DEEP, BLUE, PALE), strict=True):
            seconds = size * 8 / (speed * 1e6)
            slow.setdefault(name, duration(seconds))
            label = f"{line} ({speed:,} Mbit/s)"
            rows.append(Row(label, [Block(seconds, colour)], duration(seconds), name))
        if measured and name in measured:
            block, words = Block(measured[name], "white"), duration(measured[name])
            rows.append(Row("measured here", [block], words, name, measured=True))
    least, most = extremes(variants)
    title = f"On a slow line a pull of {most} takes {slow[most]}"
    title += f", of {least} {slow[least]}" if len(variants) > 1 else ""
    title += ": computed from the bytes"
    note = "Computed: bytes to download, divided by the line's speed, nothing else."
    note += " Measured: from the registry, on this machine." if measured else ""
    return stacked_bars(rows, title=title, axis="seconds", ticks="{x:,g}", note=note)


def surface(variants: Mapping[str, Mapping[str, float | None]]) -> Chart:
    """Draw how much there is to attack and to patch, by kind of thing; each has its own scale.

    Args:
        variants: for each image's name how many it has of each kind, such as
            ``{"packages": 431, "shells": 2}``. What is not known may be left out, or NaN.
    """
    checked_all("surface", variants)
    counts = pd.DataFrame(variants).astype(float)
    shares = counts.div(counts.max(axis=1), axis=0).fillna(0)
    rows = [
        Row(name, [Block(shares[name][kind])], _number(counts[name][kind]), kind)
        for kind in counts.index
        for name in variants
    ]
    title = f"{_surface_finding(counts)}Fewer is better; each kind has a scale of its own"
    return stacked_bars(rows, title=title, axis="of the most of its kind", ticks="{x:.0%}")


def _surface_finding(counts: pd.DataFrame) -> str:
    """Say how far the images are apart in the first kind of thing that is known of all."""
    for kind, own in counts.dropna().iterrows():
        if own.min() < own.max():
            most, least = own.idxmax(), own.idxmin()
            return f"{most} has {_number(own.max())} {kind}, {least} {_number(own.min())}. "
    return ""


def _number(value: float) -> str:
    return "not known" if math.isnan(value) else f"{value:,.0f}"
