"""What happened one after the other, and who is where: lanes, lines and grids."""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from labapp.charts.figure import Chart, canvas, fitted, frame, ink, text_width, wrapped, write
from labapp.charts.style import (
    BLUE,
    DARK,
    DEEP,
    GREY,
    MARGIN,
    ORANGE,
    PALE,
    PALETTE,
    SMALL,
    TEXT,
    WIDTH,
)
from labapp.charts.words import ALIKE, checked, checked_all, counted, extremes, listed, times
from labapp.feedback import amount

PHRASES = {200: "yes", 201: "stored", 202: "go on", 404: "no"}
"""What a registry's answers mean, in a word or two."""

_EXCHANGE = 36.0
"""How much room a request and its answer take."""

_BAND = 20.0
"""How much room the head of a band takes."""

_LINES = (
    (DEEP, "-", "o"), (ORANGE, "--", "s"), ("#832db6", "-.", "^"),
    ("#717581", ":", "D"), (BLUE, (0, (6, 1, 1, 1, 1, 1)), "v"),
)  # fmt: skip
"""Colour, dashes and mark of each line: any of the three tells it apart."""

_HIGH, _MONTHS = 230.0, 7
"""How high the lines' axes are; as many months are named below them, or one more."""

_TRY = 32.0
"""How high a row of outcomes is, for two lines."""

_STEP, _STEP_HEAD, _BOX = 46.0, 20.0, 40.0
_LINE, _NAME, _ATTACK, _CONTROL = 22.0, 44.0, 160.0, 396.0
"""Where, from the left, the journey's line and its columns stand."""


def conversation(rows: pd.DataFrame, *, layers: pd.DataFrame) -> Chart:
    """Draw what is said in a push as a sequence diagram, in bands: by what the requests are about.

    Engines send several layers side by side, so that their requests are mixed in the log. Equal
    requests of a band are drawn once, with their number.

    Args:
        rows: requests in order; columns ``client``, ``method``, ``meaning``, ``digest``, ``path``,
            ``status``, ``bytes``.
        layers: the layers of what was pushed; columns ``digest``, ``bytes`` and ``outcome``.
    """
    keys = ["method", "meaning", "status"]
    checked("a conversation", rows, "client", *keys, "digest", "path", "bytes")
    checked("a conversation about layers", layers, "digest", "bytes", "outcome")
    is_new = layers["outcome"] == "sent"
    new, there = (
        f"{{}}: {counted(len(each), 'layer')}, {amount(each['bytes'].sum())}"
        for each in (layers[is_new], layers[~is_new])
    )
    bands = ["at first", there.format("there already"), new.format("new"), "config", "manifest"]
    steps = rows.assign(band=_bands(rows, layers["digest"].map(_eight), is_new))
    steps = steps.groupby(["band", *keys], sort=False)["bytes"].agg(["sum", "size"]).reset_index()
    steps = steps.sort_values("band", kind="stable")
    client, drawn = str(rows["client"].iloc[0]), steps["band"].nunique()
    axes = canvas(
        title=f"{is_new.sum()} of {counted(len(layers), 'layer')} had to travel, and the manifest "
        "came last",
        height=_EXCHANGE * (len(steps) + 0.9) + _BAND * drawn,
        note="A request that came several times about the same kind of thing is drawn once.",
    )
    wide = WIDTH - 2 * MARGIN
    left, right = 75.0, wide - 75
    for x, name in ((left, client), (right, "registry")):
        end = (len(steps) + 0.7) * _EXCHANGE + _BAND * drawn
        axes.plot([x, x], [0.5 * _EXCHANGE, end], color=GREY, linewidth=1)
        name = fitted(name, 140, TEXT, bold=True)
        write(axes, x, 0.28 * _EXCHANGE, name, size=TEXT, ha="center", weight="bold")
    said, y, last = [], 0.0, None
    exchanges: list[Any] = list(steps.itertuples(index=False))
    for band, method, meaning, status, size, count in exchanges:
        if band != last:
            y, last = y + _BAND, band
            axes.barh(y + 11, wide, 14, color=PALE)
            write(axes, wide / 2, y + 11, bands[band], ha="center", weight="bold")
            said.append(f"{bands[band]}: ")
        y += _EXCHANGE
        often = f"{count} times " if count > 1 else ""
        said.append(f"{often}{method} {meaning}: {status}; ")
        axes.annotate("", xy=(right, y), xytext=(left, y),
                      arrowprops={"arrowstyle": "-|>", "color": BLUE})  # fmt: skip
        carries = f", {amount(size)}" if size > 2 else ""  # an empty answer may have two
        request = f"{often}{method}  {meaning}" + carries * (method != "GET")
        request = fitted(request, 0.94 * (right - left), TEXT)
        write(axes, left + 16, y - 4, request, size=TEXT, va="bottom")
        axes.annotate("", xy=(left, y + 13), xytext=(right, y + 13),
                      arrowprops={"arrowstyle": "-|>", "color": GREY, "ls": "--"})  # fmt: skip
        answer = f"{status} {PHRASES.get(status, '')}".strip() + carries * (method == "GET")
        write(axes, right - 25, y + 13, answer, ha="right",
              bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
    words = "".join(said).rstrip("; ")
    return Chart(axes, f"Sequence diagram between {client} and the registry. {words}.")


def _bands(rows: pd.DataFrame, layers: pd.Series[str], is_new: pd.Series[bool]) -> list[int]:
    """Return the number of the band of each request, given the layers' first eight digits.

    One that starts an upload names no digest; as many are started as are finished, in that order.
    """
    digest = rows["digest"].map(_eight)
    asked = set(digest[rows["method"] == "POST"])
    starts = rows.index[(rows["method"] == "POST") & (digest == "")]
    ends = rows.index[(rows["meaning"] == "finish the upload") & ~digest.isin(asked)]
    for start, end in zip(starts, ends, strict=False):
        digest[start] = digest[end]
    known = {each: 2 if new else 1 for each, new in zip(layers, is_new, strict=True)}
    return [
        4 if "/manifests/" in path else known.get(each, 3) if "/blobs/" in path else 0
        for each, path in zip(digest, rows["path"].astype(str), strict=True)
    ]


def tag_history(rows: pd.DataFrame) -> Chart:
    """Draw what a tag named and what a server ran, event by event.

    Args:
        rows: a row an event; columns ``event``, ``tag`` and ``running`` (digests, or None).
    """
    checked("a tag's history", rows, "event", "tag", "running")
    lanes = {"the tag names": "tag", "the server runs": "running"}
    # What ran first has the first colour in every chart.
    seen = [d for lane in ("running", "tag") for d in rows[lane] if isinstance(d, str)]
    colours = {digest: PALETTE[n % 6] for n, digest in enumerate(dict.fromkeys(seen))}
    left = MARGIN + max(text_width(lane, TEXT) for lane in lanes) + 8
    column = (WIDTH - left - MARGIN) / len(rows)
    events = [wrapped(str(event), column - 8, SMALL) for event in rows["event"]]
    axes = canvas(
        title="First eight digits of each digest, after each event", left=left,
        height=80 + max(map(len, events)) * SMALL * 1.35,
    )  # fmt: skip
    for y, (lane, digests) in zip((19, 57), lanes.items(), strict=True):
        write(axes, -8, y, lane, size=TEXT, ha="right")
        for number, digest in enumerate(rows[digests]):
            if isinstance(digest, str):
                x, colour = number * column, colours[digest]
                axes.barh(y, column, 27, left=x, color=colour, edgecolor="white", linewidth=2)
                eight = fitted(_eight(digest), column - 4, TEXT)
                write(axes, x + column / 2, y, eight, size=TEXT, ha="center", color=ink(colour))
    for number, lines in enumerate(events):
        write(axes, (number + 0.5) * column, 80, "\n".join(lines), ha="center", va="top")
    said = "; ".join(
        f"after '{event}' the tag names {_eight(tag)} and the server runs {_eight(running)}"
        for event, tag, running in rows[["event", "tag", "running"]].itertuples(index=False)
    )
    return Chart(axes, f"Two lanes of digests over time. {said}.")


def outcomes(variants: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw what became of each wrong thing that was tried: a grid of tries and of what they met.

    Args:
        variants: for each name (before a control and after it, say) the same tries; columns
            ``tried``, ``outcome`` (in words) and ``through`` (whether it got through).
    """
    checked_all("outcomes", variants, "tried", "outcome", "through")
    tried = next(iter(variants.values()))["tried"]
    tries = [wrapped(str(each), 160, TEXT, most=2) for each in tried]
    left = MARGIN + max(text_width(line, TEXT) for lines in tries for line in lines) + 10
    wide = (WIDTH - left - MARGIN) / len(variants)
    got = [f"{table['through'].sum()} of {len(tries)} ({name})" for name, table in variants.items()]
    axes = canvas(
        title=f"What got through: {listed(got)}", height=_TRY * (len(tries) + 0.7), left=left,
        note="Dark: an attacker's way is open. Pale: it is closed.",
    )  # fmt: skip
    for line, names in enumerate(tries):
        write(axes, -8, (line + 1.2) * _TRY, "\n".join(names), size=TEXT, ha="right")
    said = []
    for number, (name, table) in enumerate(variants.items()):
        middle, head = (number + 0.5) * wide, fitted(name, wide - 4, TEXT, bold=True)
        write(axes, middle, 0.35 * _TRY, head, size=TEXT, ha="center", weight="bold")
        rows: list[Any] = list(table.itertuples())
        for line, row in enumerate(rows):
            y, colour = (line + 1.2) * _TRY, ORANGE if row.through else PALE
            axes.barh(y, wide - 3, _TRY - 3, left=number * wide, color=colour)
            lines = wrapped(str(row.outcome), wide - 12, SMALL, most=2)
            write(axes, middle, y, "\n".join(lines), ha="center", color=ink(colour))
            said.append(f"{row.tried}, {name}: {row.outcome}")
    return Chart(axes, f"Grid of what was tried. Got through: {listed(got)}. {'; '.join(said)}.")


def _eight(digest: object) -> str:
    return digest.removeprefix("sha256:")[:8] if isinstance(digest, str) else "nothing"


def cves_since_release(
    variants: Mapping[str, pd.DataFrame], *, source: str, date: datetime.date, blind: str = ""
) -> Chart:
    """Draw how the fixes add up that an image of release day, never rebuilt, lacks.

    Args:
        variants: for each image's name a row a month; columns ``month`` (its first day) and
            ``cves`` (distinct ones from the release to the month's end). No rows mean that no
            dated fix is known.
        source: who says so; it is named in the chart.
        date: of what the source says.
        blind: what the source can't see, in a sentence.
    """
    now = pd.Timestamp(date.year, date.month, date.day)
    checked_all("CVEs since the release", variants)
    lines = {name: _line(name, rows, now) for name, rows in variants.items()}
    began = min([now - pd.DateOffset(months=1), *itertools.chain(*lines.values())]).replace(day=1)
    last = {name: max(line.values(), default=0.0) for name, line in lines.items()}
    day = f"{date.day} {date:%B %Y}"
    axes = frame(
        title=_cves_title(last), height=_HIGH, left=MARGIN + 56, bottom=34, right=MARGIN + 16,
        note=f"Source: {source}, {day}. Counted are CVEs that were fixed in the image's packages "
        f"since this Debian was released, but for kernel headers, which never run. {blind}",
    )  # fmt: skip
    for (name, line), (colour, dashes, mark) in zip(lines.items(), itertools.cycle(_LINES)):
        # Nothing on release day, and the same from the last month on until today.
        ends = {began: 0.0, **line, now: last[name]}
        axes.plot(
            pd.DatetimeIndex(list(ends)).to_numpy(), list(ends.values()), color=colour,
            linestyle=dashes, linewidth=2, marker=mark, markersize=4.5, markevery=0.1,
            clip_on=False, label=f"{fitted(name, 300, TEXT)}: {_number(last[name])}",
        )  # fmt: skip
    # Lines rise from the lower left, so that there is room above it.
    for text in axes.legend(loc="upper left", fontsize=TEXT, labelcolor=DARK).get_texts():
        text.set_parse_math(False)
    axes.set_xlim(began, now)  # type: ignore[arg-type]
    axes.set_ylim(0, max(*last.values(), 1.0) * 1.04)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", color=GREY, alpha=0.4, linewidth=0.6)
    apart = math.ceil((now - began).days / 30 / _MONTHS)
    months = pd.date_range(began, now, freq=f"{apart}MS")
    axes.set_xticks(months.to_numpy(), [f"{month:%b %Y}" for month in months])
    axes.tick_params(pad=6)
    axes.set_ylabel("CVEs fixed since the release", color=DARK, fontsize=SMALL)
    axes.set_xlabel("month", color=DARK, fontsize=SMALL)
    said = listed([f"{name} {_number(value)}" for name, value in last.items()])
    return Chart(
        axes,
        f"Line chart of CVEs fixed since the release, added up until {day}, from {source}: {said}.",
    )


def _line(name: str, rows: pd.DataFrame, now: pd.Timestamp) -> dict[pd.Timestamp, float]:
    """Return CVEs by the end of each month, or by now; none when the first month began."""
    if isinstance(rows, pd.DataFrame) and rows.empty:
        return {}
    checked(f"CVEs since the release of '{name}'", rows, "month", "cves")
    ends = pd.to_datetime(rows["month"]) + pd.offsets.MonthEnd(0)
    line = {min(end, now): float(cves) for end, cves in zip(ends, rows["cves"], strict=True)}
    return {min(line).replace(day=1): 0.0, **line}


def _number(cves: float) -> str:
    return f"{cves:,.0f}" if cves else "none known"


def _cves_title(last: Mapping[str, float]) -> str:
    """Say the finding: how many today, in the image that has most and the one that has least."""
    least, most = extremes(last)
    if not last[most]:
        return "No fix with a date is known in these packages since the release"
    title = f"Since the release, {counted(last[most], 'CVE')} were fixed in packages of {most}"
    if len(last) == 1:
        return title
    title += f", {last[least]:,.0f} in those of {least}"
    if last[most] < ALIKE * last[least] or not last[least]:
        return title
    return f"{title}: {times(last[most], last[least])} as many"


def journey(rows: pd.DataFrame) -> Chart:
    """Draw the steps of the journey; one whose exercises are all passed is lit.

    Args:
        rows: a row a step, in order; columns ``step``, ``attack``, ``control``, ``passed`` and
            ``exercises`` (how many are passed, of how many).
    """
    checked("the journey", rows, "step", "attack", "control", "passed", "exercises")
    steps: list[Any] = list(rows.itertuples())
    lit = [step.step for step in steps if step.passed >= step.exercises]
    title = f"{len(lit)} of {len(steps)} steps {'is' if len(lit) == 1 else 'are'} lit"
    if not lit:
        title = f"{len(steps)} steps, and at each one the wrong thing can get in. None is lit yet"
    elif len(lit) == len(steps):
        title = f"All {len(steps)} steps are lit: "
        title += "you know what gets in at each one, and what stops it"
    axes = canvas(title=title, height=_STEP_HEAD + len(steps) * _STEP)
    write(axes, _ATTACK, _STEP_HEAD / 2, "what can get in")
    write(axes, _CONTROL, _STEP_HEAD / 2, "what stops it")
    middles = [_STEP_HEAD + number * _STEP + _BOX / 2 for number in range(len(steps))]
    axes.plot([_LINE, _LINE], [middles[0], middles[-1]], color=GREY, linewidth=3)
    said, end = [], WIDTH - 2 * MARGIN
    for step, middle in zip(steps, middles, strict=True):
        share = f"{step.passed:.0f} of {step.exercises:.0f}"
        said.append(f"{step.step}: {share} exercises passed")
        is_lit = step.step in lit
        axes.barh(middle, end - _NAME, _BOX, _NAME - 8, color=PALE if is_lit else "white",
                  edgecolor=DEEP if is_lit else GREY, linewidth=1.2 if is_lit else 0.8)  # fmt: skip
        colour = DEEP if is_lit else PALE if step.passed else "white"
        axes.plot(_LINE, middle, "o", markersize=18, color=colour,
                  markeredgecolor=DEEP if step.passed else GREY, markeredgewidth=2)  # fmt: skip
        mark = "✓" if is_lit else f"{step.passed:.0f}" if step.passed else ""
        write(axes, _LINE, middle, mark, ha="center", va="center_baseline", weight="bold",
              color=ink(colour))  # fmt: skip
        write(axes, _NAME, middle - 7, step.step, size=TEXT, weight="bold")
        noun = "exercise" if step.exercises == 1 else "exercises"
        write(axes, _NAME, middle + 7, f"{share} {noun}")
        for x, until, text in ((_ATTACK, _CONTROL, step.attack), (_CONTROL, end, step.control)):
            write(axes, x, middle, "\n".join(wrapped(text, until - x - 14, SMALL, most=3)))
    which = f"Lit: {listed(lit)}" if lit else "None is lit"
    words = "; ".join(said)
    alt = f"Map of the journey of an image, in {len(steps)} steps. {which}. {words}."
    return Chart(axes, alt, table=rows)
