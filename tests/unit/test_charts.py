from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from labapp import charts
from labapp.charts import figure
from labapp.charts.words import duration
from labapp.errors import LabError

SVG = "{http://www.w3.org/2000/svg}"
DAY = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC)
LONG = "localhost:41233/ada/shop-with-a-rather-long-name-for-an-image:my-own-try-17"
APT = "RUN apt-get update && apt-get install -y gcc libc6-dev && rm -rf /var/lib/apt/lists/*"


def image(*layers: tuple[str, str, float, float]) -> pd.DataFrame:
    """An image's layers: instruction, digest, download and unpacked bytes."""
    columns = ["instruction", "digest", "download_bytes", "unpacked_bytes"]
    return pd.DataFrame(layers, columns=columns)


FULL = image(("base image python:3.13", "f", 254e6, 997e6), ("COPY shop shop", "s", 5200, 12e3))
SLIM = image(
    ("base image python:3.13-slim", "b", 32e6, 122e6),
    (APT, "g", 41e6, 160e6),
    ("WORKDIR /src", "w", 92, 0),
    ("COPY shop shop", "s", 5200, 12e3),
)
MULTISTAGE = image(
    ("base image python:3.13-slim", "b", 32e6, 122e6),
    ("COPY --from=build /opt/venv /opt/venv", "v", 1.4e6, 4.2e6),
)
MINIMAL = image(("COPY --from=assemble / /", "m", 8e6, 30e6))
OWN = image(
    ("base image python:3.13-slim", "b", 32e6, 122e6),
    ("RUN echo $HOME and $PATH", "e", 0, 0),
    *((f"RUN step {n}", f"r{n}", 3e3 * n, 9e3 * n) for n in range(12)),
)
FIVE = {"full": FULL, "slim": SLIM, "multistage": MULTISTAGE, "minimal": MINIMAL, LONG: OWN}

PACKAGES = {"gcc-14-x86-64-linux-gnu": 70e6, "libicu-dev": 51e6, "libc6": 13e6, "git": 49e6}


def files(packages: dict[str, float], loose: dict[str, float]) -> pd.DataFrame:
    """An image's files: one for each package, and those that none owns by path."""
    rows = [(f"/usr/lib/{name}.so", "file", size, name) for name, size in packages.items()]
    rows += [(path, "file", size, "") for path, size in loose.items()]
    return pd.DataFrame(rows, columns=["path", "type", "bytes", "package"])


CROWD = {f"lib{'x' * (n % 9)}{n}-dev": 30e6 / (1 + n) for n in range(250)}
FULL_FILES = files(
    PACKAGES | CROWD,
    {"/opt/venv/lib/python3.13/a.py": 9e6, "/usr/lib/python3/b.pyc": 15e6, "/var/cache/c": 8e6},
)
SLIM_FILES = files({"libc6": 13e6, "perl-base": 7e6}, {"/opt/venv/lib/a.py": 9e6})


def months(*cves: int) -> pd.DataFrame:
    """CVEs added up, month by month until the day."""
    first = pd.date_range(end="2026-11-01", periods=len(cves), freq="MS")
    return pd.DataFrame({"month": first, "cves": cves})


NO_MONTHS = months(1).iloc[:0]

BUILD = pd.DataFrame(
    {
        "stage": ["", "build", "build", "build", "", ""],
        "instruction": [
            "ARG BASE",
            "FROM python:3.13 AS build",
            "RUN pip --python /opt/venv install -r requirements.txt",
            "RUN pip install .",
            "FROM python:3.13-slim",
            "COPY --from=build /opt/venv /opt/venv",
        ],
        "cached": ["", "", False, False, "", False],
        "seconds": [0.0, 0.01, 6.4, 3.3, 0.01, 1.2],
    }
)
AGAIN = BUILD.assign(cached=["", "", True, False, "", False], seconds=[0, 0.01, 0, 3.1, 0.01, 1.3])
SINGLE = BUILD.drop(columns="stage")

PULLS = {name: float(rows["download_bytes"].sum()) for name, rows in FIVE.items()}
KINDS = ["packages", "CVEs fixed since release", "shells", "compilers", "set-uid files", "clients"]
SURFACE: dict[str, dict[str, Any]] = {
    name: {kind: [431, 118, 99, 0, None][n] for kind in KINDS} for n, name in enumerate(FIVE)
}
REQUESTS = pd.DataFrame(
    [
        ("docker/20.10", "HEAD", "is this layer there?", 404, 0),
        ("docker/20.10", "HEAD", "is this layer there?", 404, 0),
        ("docker/20.10", "PATCH", "here are the bytes of a layer " * 6, 202, 31e6),
    ],
    columns=["client", "method", "meaning", "status", "bytes"],
)
EVENTS = pd.DataFrame(
    [
        (f"event {n}: a colleague pushes {'again' * n}", "sha256:aaaabbbbcc", f"sha256:{n}00000000")
        for n in range(7)
    ],
    columns=["event", "tag", "running"],
)
PUSH = pd.DataFrame({"bytes": [31e6, 2e6, 100], "outcome": ["mounted", "sent", "sent"]})
STATES = ("alone", "hints", "solution", "tried", "open")


def school(*learners: str, exercises: int = 26, state: str = "") -> pd.DataFrame:
    """A class: learners who are less far, one by one."""
    return pd.DataFrame(
        [
            (name, f"0{n // 3}-word{n}", state or STATES[(n + place) % 5], 1 + 9 * (n % 3))
            for place, name in enumerate(learners)
            for n in range(exercises)
        ],
        columns=["learner", "exercise", "state", "tries"],
    )


def steps(*passed: int, word: str = "tag") -> pd.DataFrame:
    """A journey of steps with three exercises each."""
    return pd.DataFrame(
        [(f"Step {n}", f"a moved {word} " * 3, word, done, 3) for n, done in enumerate(passed)],
        columns=["step", "attack", "control", "passed", "exercises"],
    )


Draw = Callable[[], charts.Chart]

HARD: dict[str, Draw] = {
    "layers": lambda: charts.layers(pd.concat([SLIM, OWN])),
    "one layer": lambda: charts.layers(MINIMAL),
    "build times": lambda: charts.build_times({"cold": SINGLE, LONG: SINGLE.assign(cached=True)}),
    "stages": lambda: charts.build_times(
        {"from nothing": BUILD, "a line of the shop changed": AGAIN, "single stage": SINGLE}
    ),
    "sizes": lambda: charts.sizes({"tiny": 1, "huge": 3e12, LONG: 0}, title="Bytes " * 40),
    "pushes": lambda: charts.pushes({"first": PUSH, LONG: PUSH.assign(outcome="already there")}),
    "conversation": lambda: charts.conversation(REQUESTS),
    "a tag's history": lambda: charts.tag_history(EVENTS),
    "sizes of one": lambda: charts.variant_sizes({"minimal": MINIMAL}),
    "sizes of two": lambda: charts.variant_sizes({"full": FULL, "slim": SLIM}),
    "sizes of five": lambda: charts.variant_sizes(FIVE),
    "layers of one": lambda: charts.shared_layers({"slim": SLIM}),
    "layers of five": lambda: charts.shared_layers(FIVE),
    "pull of one": lambda: charts.pull_times({"empty": 0}),
    "pulls of five": lambda: charts.pull_times(
        PULLS, measured={"full": (31.0, 29.0, 48.0), "slim": (5.0,), "minimal": ()}
    ),
    "surface of one": lambda: charts.surface({"slim": {"packages": 118}}),
    "surface of five": lambda: charts.surface(SURFACE),
    "CVEs of one": lambda: charts.cves_since_release(
        {"slim": months(3)}, source="Debian's own fixes", date=DAY
    ),
    "CVEs of five": lambda: charts.cves_since_release(
        {
            "full": months(*range(1, 2000, 70)),
            "slim": months(20, 60, 212),
            "multistage": months(20, 60, 211),
            "minimal": NO_MONTHS,
            LONG: months(210),
        },
        source="Debian's own fixes",
        date=DAY,
        blind="It can't see what Debian has not fixed yet. " * 3,
    ),
    "CVEs alike at the top": lambda: charts.cves_since_release(
        {f"image {n}": months(100, 1000 - n) for n in range(5)}, source="Grype 0.9", date=DAY
    ),
    "no CVEs": lambda: charts.cves_since_release(
        {"minimal": NO_MONTHS}, source="Debian's own fixes", date=DAY
    ),
    "map of one": lambda: charts.where_bytes_are({LONG: FULL_FILES}),
    "map of two": lambda: charts.where_bytes_are({"full": FULL_FILES, "slim": SLIM_FILES}),
    "map of alike": lambda: charts.where_bytes_are({LONG: FULL_FILES, "full": FULL_FILES}),
    "map of a speck": lambda: charts.where_bytes_are(
        {"speck": files({}, {"/app/x": 12}), "full": FULL_FILES}
    ),
    "a class": lambda: charts.classroom(school("ada", "bob", LONG)),
    "a class of twelve": lambda: charts.classroom(school(*(f"learner {n}" for n in range(12)))),
    "a class of one": lambda: charts.classroom(school("ada", exercises=1, state="alone")),
    "a class before its first day": lambda: charts.classroom(school("ada", "bob", state="open")),
    "a journey": lambda: charts.journey(steps(3, 2, 0, 0, 1, 3)),
    "a journey before its first day": lambda: charts.journey(steps(*[0] * 9, word=LONG)),
    "a journey's end": lambda: charts.journey(steps(3, 3)),
    "map of nothing": lambda: charts.where_bytes_are({"empty": files({}, {"/app/x": 0})}),
}


@functools.cache
def hard(name: str) -> charts.Chart:
    return HARD[name]()


@functools.cache
def texts(chart: charts.Chart) -> list[Text]:
    """What can be read in a chart: the texts that are drawn when it is."""
    drawn: list[Text] = []
    really_draw = Text.draw

    def draw(text: Text, *args: Any, **more: Any) -> None:
        drawn.append(text)
        really_draw(text, *args, **more)

    FigureCanvasAgg(chart.figure)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", draw)
        chart.figure.draw_without_rendering()
    return [text for text in drawn if text.get_visible() and text.get_text().strip()]


def words(chart: charts.Chart) -> str:
    """All that can be read in a chart."""
    return "\n".join(text.get_text() for text in texts(chart))


@pytest.mark.parametrize("name", HARD)
def test_labels_are_in_the_figure_large_enough_and_apart(name: str) -> None:
    found = texts(hard(name))
    boxes = np.array([Text.get_window_extent(text).extents for text in found])
    edge = found[0].get_figure(root=True).bbox  # type: ignore[union-attr]
    outside = [
        text.get_text()
        for text, (x0, y0, x1, y1) in zip(found, boxes, strict=True)
        if x0 < edge.x0 or x1 > edge.x1 or y0 < edge.y0 or y1 > edge.y1
    ]
    begin, end = boxes[:, None, :2], boxes[:, None, 2:]
    shared = np.minimum(end, end.swapaxes(0, 1)) - np.maximum(begin, begin.swapaxes(0, 1))
    both = np.triu((shared[..., 0] > 1) & (shared[..., 1] > 1.5), k=1)
    together = [(found[a].get_text(), found[b].get_text()) for a, b in np.argwhere(both)]
    assert outside == []
    assert together == []
    assert min(text.get_fontsize() for text in found) >= 9  # type: ignore[type-var]
    assert len(found) >= 3


ALTS = {
    "sizes of two": [
        "full: 254.0 MB to download, 997.0 MB unpacked, in 2 layers",
        "slim: 73.0 MB to download, 282.0 MB unpacked, in 4 layers",
    ],
    "layers of five": [
        "2 shared layers",
        # The base of two other images, and the shop's layer of one.
        "fetches 64.0 MB less for the others",
        "full: 2 layers, 254.0 MB, 5.2 kB of it shared",
        "slim: 4 layers, 73.0 MB, 32.0 MB of it shared",
        "minimal: 1 layer, 8.0 MB, nothing shared",
    ],
    "layers of one": ["One image alone shares nothing", "slim: 4 layers, 73.0 MB, nothing shared"],
    "pulls of five": [
        "computed from the bytes",
        "full: 3 min 23 s on a slow line, 20 s on a typical line and 2.0 s on a fast line; "
        "measured 31 s",
        "minimal: 6.4 s on a slow line, 0.6 s on a typical line and 0.1 s on a fast line. ",
        "Slow is 10 Mbit/s, typical is 100 Mbit/s and fast is 1,000 Mbit/s",
    ],
    "surface of five": [
        "packages: full 431, slim 118, multistage 99, minimal 0 and " + LONG + " not known"
    ],
    "CVEs of five": [
        "until 23 November 2026, from Debian's own fixes",
        f"full 1,961, slim 212, multistage 211, minimal none known and {LONG} 210",
    ],
    "map of two": [
        "slim: 29.0 MB in 3 files, the largest parts are libc6 13.0 MB, /opt/venv 9.0 MB and "
        "perl-base 7.0 MB; 1 package that the other has not: 7.0 MB",
        "largest parts are gcc-14-x86-64-linux-gnu 70.0 MB, libicu-dev 51.0 MB and git 49.0 MB",
    ],
    "stages": [
        "from nothing: 11 s, 3 steps had work to do "
        "(by stage: build 9.7 s and the last stage 1.2 s)",
        "a line of the shop changed: 4.4 s, 2 steps had work to do",
    ],
    "build times": ["cold: 11 s, 3 steps had work", f"{LONG}: 11 s, 0 steps had work to do"],
    "layers": ["18 layers", "The largest is 'RUN apt-get update", "with 41.0 MB, 39% of"],
    "pushes": ["first: 2.0 MB: 2 of 3 layers", f"{LONG}: 0 B: 0 of 3 layers"],
    "sizes": ["tiny: 1 B; huge: 3000.0 GB"],
    "a class": ["3 learners and 26 exercises", "00-word0 by 3; 00-word1 by 2; 00-word2 by 1"],
    "a journey": ["in 6 steps. Lit: Step 0 and Step 5. ", "Step 1: 2 of 3 exercises passed"],
    "conversation": ["2 times HEAD is this layer there?: 404"],
    "a tag's history": ["the tag names aaaabbbb and the server runs 60000000"],
}


@pytest.mark.parametrize("name", ALTS)
def test_the_alternative_text_has_the_numbers(name: str) -> None:
    for said in ALTS[name]:
        assert said in hard(name).alt


TITLES = {
    "sizes of two": "full takes 3.5 times the bytes of slim to download: 254.0 MB against 73.0 MB",
    "sizes of one": "minimal: 8.0 MB to download, 30.0 MB unpacked",
    "pulls of five": "On a slow line a pull of full takes 3 min 23 s, of minimal 6.4 s: "
    "computed from the bytes",
    "surface of five": "Fewer is better; each small chart has a scale of its own",
    "CVEs of one": "Never rebuilt since the release, slim would have 3 known CVEs",
    "CVEs of five": "Never rebuilt since the release, full would have 1,961 known CVEs, "
    "minimal none",
    "a class": "3 learners: 48 of 78 exercises passed",
    "a class of twelve": "12 learners: 188 of 312 exercises passed; 3 tried 00-word2 and have not "
    "passed it yet",
    "a class of one": "Everybody passed everything: 1 receipt",
    "a class before its first day": "2 learners: 0 of 52 exercises passed",
    "a journey": "2 of 6 steps are lit",
    "a journey's end": "All 2 steps are lit: you know what gets in at each one, and what stops it",
    "no CVEs": "No fix with a date is known in these packages since the release",
    "map of alike": f"{LONG} and full have about as many bytes. Equal areas are equal bytes",
}


@pytest.mark.parametrize("name", TITLES)
def test_the_title_says_the_finding(name: str) -> None:
    assert hard(name).title == TITLES[name]


def test_the_source_its_date_and_what_it_cant_see_are_in_the_chart() -> None:
    seen = " ".join(words(hard("CVEs of five")).split())
    assert "Source: Debian's own fixes, 23 November 2026." in seen
    assert "but for kernel headers" in seen
    assert "It can't see what Debian has not fixed yet." in seen


def test_lines_begin_with_the_release_and_end_today_with_their_last_number() -> None:
    (axes,) = hard("CVEs of five").figure.axes
    ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in axes.lines]
    begins = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}
    late = axes.lines[4]
    assert [float(y) for y in late.get_ydata()[:3]] == [0, 0, 210], "nothing before its first month"
    assert [float(cves) for _, cves in ends] == [1961, 212, 211, 0, 210]
    assert {pd.Timestamp(day) for day, _ in ends} == {pd.Timestamp("2026-11-23")}
    assert begins == {(pd.Timestamp("2024-07-01").to_datetime64(), 0.0)}
    assert len({line.get_linestyle() for line in axes.lines}) >= 4
    assert len({line.get_marker() for line in axes.lines}) == 5


def rectangles(chart: charts.Chart) -> list[Rectangle]:
    """A map's pieces: all its rectangles but the key and the squares before words."""
    (axes,) = chart.figure.axes
    return [
        patch
        for patch in axes.findobj(Rectangle)
        if patch is not axes.patch and patch.get_edgecolor()[:3] == (1, 1, 1)
    ]


@pytest.mark.parametrize("name", ["map of two", "map of one", "map of a speck"])
def test_equal_areas_are_equal_bytes_in_all_maps(name: str) -> None:
    found = {text: " ".join(text.get_text().split()) for text in texts(hard(name))}
    (axes,) = hard(name).figure.axes
    (key,) = [p for p in axes.findobj(Rectangle) if p.get_facecolor()[3] == 0 and p.get_lw() == 0.8]
    (told,) = [text for text in found.values() if text.startswith("this area is")]
    size, unit = told.split()[3:5]
    scale = float(size) * {"MB": 1e6, "kB": 1e3}[unit] / (key.get_width() * key.get_height())
    expected = {"gcc-14-x86-64- linux-gnu": 70e6, "libicu-dev": 51e6, "git": 49e6, "libc6": 13e6}
    pieces = rectangles(hard(name))
    seen = []
    for text, name_and_bytes in found.items():
        own = [bytes_ for start, bytes_ in expected.items() if name_and_bytes.startswith(start)]
        around = [p for p in pieces if p.contains_point(centre(text))] if own else []
        if around:
            seen.append(own[0])
            area = around[0].get_width() * around[0].get_height()
            assert area * scale == pytest.approx(own[0], rel=1e-6), name_and_bytes
    total = sum(p.get_width() * p.get_height() for p in pieces) * scale
    assert len(seen) >= 3
    images = {"map of two": [FULL_FILES, SLIM_FILES], "map of alike": [FULL_FILES, FULL_FILES]}
    assert total == pytest.approx(
        sum(rows["bytes"].sum() for rows in images.get(name, [FULL_FILES])), rel=1e-6
    )


def centre(text: Text) -> tuple[float, float]:
    box = Text.get_window_extent(text)
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def test_what_two_images_share_is_the_same_number_in_both_heads() -> None:
    stripped = pd.concat([SLIM_FILES, files({"git": 0}, {})])
    chart = charts.where_bytes_are({"full": FULL_FILES, "slim": stripped})
    shared = re.findall(r"\d+ packages? of both", words(chart))
    assert shared == ["2 packages of both"] * 2


def test_a_map_covers_itself_once() -> None:
    chart = hard("map of one")
    pieces = rectangles(chart)
    boxes = [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in pieces]
    wide = max(x + w for x, _, w, _ in boxes) - min(x for x, _, _, _ in boxes)
    high = max(y + h for _, y, _, h in boxes) - min(y for _, y, _, _ in boxes)
    assert sum(w * h for _, _, w, h in boxes) == pytest.approx(wide * high)
    for (x, y, w, h), (x2, y2, w2, h2) in itertools.combinations(boxes, 2):
        assert min(x + w, x2 + w2) - max(x, x2) < 1e-6 or min(y + h, y2 + h2) - max(y, y2) < 1e-6


def test_a_maps_words_stay_in_their_pieces() -> None:
    chart = hard("map of two")
    found = {text.get_text(): Text.get_window_extent(text) for text in texts(chart)}
    boxes = [piece.get_window_extent() for piece in rectangles(chart)]
    inside = [
        name
        for name, text in found.items()
        if any(
            box.x0 <= text.x0 and text.x1 <= box.x1 and box.y0 <= text.y0 and text.y1 <= box.y1
            for box in boxes
        )
    ]
    assert "git\n49.0 MB" in inside
    assert "libc6" in " ".join(inside)
    assert any(re.match(r"\d+ smaller\s+packages", name) for name in inside)
    # What is not in a piece: the title, two heads with their keys, the scale.
    assert len(found) - len(inside) <= 11


LENGTHS: dict[str, tuple[str, list[float]]] = {
    "sizes of two": ("megabytes", [254.0052, 997.012, 73.005292, 282.012]),
    "one layer": ("megabytes", [8.0]),
    "pushes": ("megabytes", [2.0001, 0.0]),
    "layers of two": ("megabytes", [254.0052, 73.005292]),
    "kilobytes": ("kilobytes", [3.0, 5.2]),
    "pulls": ("seconds", [203.2, 20.32, 2.032, 31.0]),
}
"""What the axis counts, and how long each bar is in it; a measured pull's is the middle run."""


@pytest.mark.parametrize("name", LENGTHS)
def test_bars_are_as_long_as_their_numbers(name: str) -> None:
    more: dict[str, Draw] = {
        "layers of two": lambda: charts.shared_layers({"full": FULL, "slim": SLIM}),
        "kilobytes": lambda: charts.sizes({"a": 3000, "b": 5200}, title="Sizes"),
        "pulls": lambda: charts.pull_times({"full": 254e6}, measured={"full": (31, 29, 48)}),
    }
    (axes,) = (more[name]() if name in more else hard(name)).figure.axes
    unit, expected = LENGTHS[name]
    lengths: dict[float, float] = {}
    for bar in axes.patches:
        if isinstance(bar, Rectangle):
            row = round(bar.get_y() + bar.get_height() / 2, 3)
            lengths[row] = lengths.get(row, 0.0) + bar.get_width()
    assert list(lengths.values()) == pytest.approx(expected)
    assert unit in axes.get_xlabel()


def test_a_stage_begins_where_the_one_before_it_ended() -> None:
    (axes,) = hard("stages").figure.axes
    rows = {round(bar.get_y(), 3): bar.get_x() for bar in reversed(axes.patches)}  # type: ignore[attr-defined]
    assert sorted(rows.values()) == pytest.approx([0, 0, 0, 3.11, 9.71])
    seen = words(hard("stages"))
    assert all(stage in seen for stage in ("build\n", "the last stage", "all steps"))


@pytest.mark.parametrize(
    "stages",
    [["", "", ""], ["build", "build", ""], ["", "build", "build"], ["a", "a", ""], ["", "a", ""]],
)
def test_stages_with_and_without_names(stages: list[str]) -> None:
    steps = BUILD.iloc[:3].assign(stage=stages, instruction="RUN true", seconds=1.0, cached=False)
    alt = charts.build_times({"cold": steps}).alt
    assert "cold: 3.0 s, 3 steps had work to do" in alt
    assert ("by stage" in alt) == any(stages)


def test_measured_pulls_stand_beside_the_computed_ones() -> None:
    seen = words(hard("pulls of five"))
    assert seen.count("measured here") == 2
    assert "31 s (3 runs)" in seen
    assert "Computed: bytes to download" in seen
    assert "Measured: " not in words(hard("pull of one"))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.004, "0 s"), (0.012, "0.01 s"), (9.94, "9.9 s"), (9.96, "10 s"),
     (59.6, "1 min"), (203.2, "3 min 23 s"), (3599.7, "1 h"), (7500, "2 h 5 min")],
)  # fmt: skip
def test_times_as_a_person_says_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize("colour", [*figure.PALETTE, figure.DEEP, figure.PALE, figure.AMBER])
def test_text_on_a_colour_can_be_read(colour: str) -> None:
    def light(of: str) -> float:
        shares = [int(of[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (
            s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05

    pair = sorted([light(colour), light(figure.ink(colour).replace("white", "#ffffff"))])
    assert pair[1] / pair[0] >= 4.5


def test_neighbours_differ_in_brightness_too() -> None:
    def grey(colour: str) -> float:
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    pairs = [*itertools.pairwise(figure.PALETTE[:5]), (figure.DEEP, figure.PALE)]
    pairs += itertools.combinations([figure.DEEP, figure.PALE, figure.AMBER], 2)
    assert min(abs(grey(one) - grey(other)) for one, other in pairs) >= 32


TEXTS = [
    "",
    "a",
    "gcc-14-x86-64-linux-gnu",
    "RUN apt-get  update\n && rm $A $B",
    "ÄÖ…é",
    "i" * 300,
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("width", [0.0, 3.0, 40.0, 200.0])
def test_what_is_fitted_fits(text: str, width: float) -> None:
    plain = " ".join(text.split())
    for cut in (figure.fitted(text, width, 9, keep=keep) for keep in ("start", "end")):
        assert figure.text_width(cut, 9) <= width
        assert cut == plain or len(cut) < len(plain)
    middle = figure.fitted(text, width, 9, keep="ends")
    assert middle == plain or ("…" in middle and len(middle) <= max(3, len(plain)))
    lines = figure.wrapped(text, width + 32, 9)
    assert all(figure.text_width(line, 9) <= width + 32 for line in lines)


def test_an_instruction_with_dollars_is_no_formula() -> None:
    assert "RUN echo $HOME and $PATH" in words(hard("layers"))


def test_png(tmp_path: Path) -> None:
    chart = hard("sizes of two")
    with Image.open(chart.save(tmp_path / "a folder" / "sizes.PNG")) as picture:
        assert picture.width == pytest.approx(chart.figure.get_figwidth() * 176, abs=1)
        assert picture.text["Description"] == chart.alt  # type: ignore[attr-defined]
        assert picture.text["Title"] == chart.title  # type: ignore[attr-defined]
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert len(picture.convert("L").getcolors() or []) > 3


@pytest.mark.parametrize("name", ["sizes of two", "map of two"])
def test_svg_has_its_text_as_text_and_says_what_it_shows(name: str, tmp_path: Path) -> None:
    chart = hard(name)
    root = ElementTree.fromstring(chart.save(tmp_path / "chart.svg").read_bytes())
    written = [" ".join("".join(text.itertext()).split()) for text in root.iter(f"{SVG}text")]
    assert root.get("role") == "img"
    assert [child.tag for child in root][:2] == [f"{SVG}title", f"{SVG}desc"]
    assert root.findtext(f"{SVG}title") == chart.title
    assert root.findtext(f"{SVG}desc") == chart.alt
    assert "slim" in written
    assert chart.svg() == chart.svg()


@pytest.mark.parametrize("file", ["chart.pdf", "chart", "a file/chart.png"])
def test_a_chart_that_cant_be_saved(file: str, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("here already")
    with pytest.raises(LabError, match=re.escape(str(tmp_path / file))):
        hard("one layer").save(tmp_path / file)


def test_a_chart_in_a_notebook_is_a_picture_with_its_alternative_text() -> None:
    name = 'the "first" <image>'
    chart = charts.layers(MINIMAL.assign(instruction=name))
    shown = ElementTree.fromstring(chart._repr_html_().replace("data-", "data").replace(">", "/>"))
    assert shown.tag == "img"
    assert shown.get("class") == "labapp-chart"
    assert name in (shown.get("alt") or "")
    data = (shown.get("src") or "").removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        picture.verify()


@pytest.mark.parametrize("show", [charts.show, charts.Chart.show])
def test_where_only_text_is_shown_it_says_the_finding(show: Callable[[charts.Chart], None]) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        show(hard("one layer"))
    assert out.getvalue().strip() == f"Chart: {hard('one layer').alt}"


BAD: dict[str, tuple[Draw, str]] = {
    "no variants": (lambda: charts.variant_sizes({}), "sizes of variants"),
    "a table alone": (lambda: charts.shared_layers(SLIM), "DataFrame"),  # type: ignore[arg-type]
    "no table": (lambda: charts.variant_sizes({"slim": [1, 2]}), "'list'"),  # type: ignore[dict-item]
    "no rows": (lambda: charts.where_bytes_are({"slim": SLIM_FILES.iloc[:0]}), "'slim'"),
    "no column": (
        lambda: charts.shared_layers({"slim": SLIM.drop(columns="digest")}),
        "'digest', only 'instruction', 'download_bytes', 'unpacked_bytes'",
    ),
    "a negative number": (
        lambda: charts.variant_sizes({"slim": SLIM.assign(unpacked_bytes=-1)}),
        "'-1' in the column 'unpacked_bytes'",
    ),
    "no number": (lambda: charts.layers(SLIM.assign(download_bytes="much")), "'much'"),
    "a missing number": (
        lambda: charts.build_times({"cold": BUILD.assign(seconds=float("nan"))}),
        "'cold': 'nan' in the column 'seconds'",
    ),
    "three maps": (
        lambda: charts.where_bytes_are(dict.fromkeys("abc", SLIM_FILES)),
        "'a', 'b', 'c'",
    ),
    "measured, not computed": (
        lambda: charts.pull_times({"slim": 1.0}, measured={"full": (3.0,)}),
        "'full'",
    ),
    "an endless pull": (
        lambda: charts.pull_times({"slim": 1.0}, measured={"slim": (float("inf"),)}),
        "'inf' in the column 'seconds'",
    ),
    "bytes in words": (lambda: charts.pull_times({"slim": "32 MB"}), "'32 MB'"),  # type: ignore[dict-item]
    "no counts": (lambda: charts.surface({"slim": {}}), "surface"),
    "no count": (lambda: charts.surface({"slim": {"shells": -2}}), "'slim': '-2' shells"),
    "no months": (
        lambda: charts.cves_since_release(
            {"slim": months(1).drop(columns="month")}, source="x", date=DAY
        ),
        "'month'",
    ),
    "an empty log": (lambda: charts.conversation(REQUESTS.iloc[:0]), "conversation"),
    "no events": (lambda: charts.tag_history(EVENTS.iloc[:0]), "history"),
    "no pushes": (lambda: charts.pushes({}), "pushes"),
    "no class": (lambda: charts.classroom(school()), "class"),
    "no steps": (lambda: charts.journey(EVENTS), "'step'"),
    "no sizes": (lambda: charts.sizes({}, title="Sizes"), "sizes"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cant_be_drawn_is_told_in_a_sentence(name: str) -> None:
    draw, fact = BAD[name]
    with pytest.raises(LabError, match=re.escape(fact)):
        draw()


def test_every_chart_is_drawn_here() -> None:
    drawn = {name for draw in HARD.values() for name in draw.__code__.co_names}
    assert set(charts.__all__) - {"Chart", "show"} <= drawn
