from __future__ import annotations

import base64
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
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from labapp import charts
from labapp.charts import figure, style
from labapp.charts.bars import duration
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
BASE, *_ = SLIM.itertuples(index=False, name=None)
MULTISTAGE = image(BASE, ("COPY --from=build /opt/venv /opt/venv", "v", 1.4e6, 4.2e6))
MINIMAL = image(("COPY --from=assemble / /", "m", 8e6, 30e6))
OWN = image(
    BASE,
    ("RUN echo $HOME and $PATH", "e", 0, 0),
    *((f"RUN step {n}", f"r{n}", 3e3 * n, 9e3 * n) for n in range(5)),
)
FIVE = {"full": FULL, "slim": SLIM, "multistage": MULTISTAGE, "minimal": MINIMAL, LONG: OWN}

PACKAGES = {"gcc-14-x86-64-linux-gnu": 70e6, "libicu-dev": 51e6, "libc6": 13e6, "git": 49e6}


def files(packages: dict[str, float], loose: dict[str, float]) -> pd.DataFrame:
    """An image's files: one for each package, and those that none owns by path."""
    rows = [(f"/usr/lib/{name}.so", "file", size, name) for name, size in packages.items()]
    rows += [(path, "file", size, "") for path, size in loose.items()]
    return pd.DataFrame(rows, columns=["path", "type", "bytes", "package"])


CROWD = {f"lib{'x' * (n % 9)}{n}-dev": 30e6 / (1 + n) ** 1.2 for n in range(150)}
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
CVES = {
    "full": months(*range(1, 2000, 70)),
    "slim": months(20, 60, 212),
    "multistage": months(20, 60, 211),
    "minimal": NO_MONTHS,
    LONG: months(210),
}

BUILD = pd.DataFrame(
    [
        ("", "ARG BASE", "", 0),
        ("build", "FROM python:3.13 AS build", "", 0.01),
        ("build", "RUN pip --python /opt/venv install -r requirements.txt", False, 6.4),
        ("build", "RUN pip install .", False, 3.3),
        ("", "FROM python:3.13-slim", "", 0.01),
        ("", "COPY --from=build /opt/venv /opt/venv", False, 1.2),
    ],
    columns=["stage", "instruction", "cached", "seconds"],
)
AGAIN = BUILD.assign(cached=["", "", True, False, "", False], seconds=[0, 0.01, 0, 3.1, 0.01, 1.3])
SINGLE = BUILD.drop(columns="stage")

PULLS = {name: float(rows["download_bytes"].sum()) for name, rows in FIVE.items()}
KINDS = ["packages", "CVEs fixed since release", "shells", "compilers", "set-uid files", "clients"]
SURFACE: dict[str, dict[str, Any]] = {
    name: {kind: [431, 118, 99, 0, None][n] for kind in KINDS} for n, name in enumerate(FIVE)
}
HEAD = ("docker/20.10", "HEAD", "is this layer there?", 404, 0)
PATCH = ("docker/20.10", "PATCH", "here are the bytes of a layer " * 6, 202, 31e6)
REQUESTS = pd.DataFrame(
    [HEAD, HEAD, PATCH], columns=["client", "method", "meaning", "status", "bytes"]
)
EVENTS = pd.DataFrame(
    {
        "event": [f"event {n}: a colleague pushes {'again' * n}" for n in range(7)],
        "tag": "sha256:aaaabbbbcc",
        "running": [f"sha256:{n}00000000" for n in range(7)],
    }
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

DEBIAN = {"source": "Debian's own fixes", "date": DAY}

HARD: dict[str, Draw] = {
    "layers": lambda: charts.layers(pd.concat([SLIM, OWN])),
    "one layer": lambda: charts.layers(MINIMAL),
    "build times": lambda: charts.build_times({"cold": SINGLE, LONG: SINGLE.assign(cached=True)}),
    "stages": lambda: charts.build_times(
        {"from nothing": BUILD, "a line of the shop changed": AGAIN, "single stage": SINGLE}
    ),
    "sizes": lambda: charts.sizes({"tiny": 1, "huge": 3e12, LONG: 0}, title="Bytes " * 40),
    "kilobytes": lambda: charts.sizes({"a": 3000, "b": 5200}, title="Sizes"),
    "pushes": lambda: charts.pushes({"first": PUSH, LONG: PUSH.assign(outcome="already there")}),
    "conversation": lambda: charts.conversation(REQUESTS),
    "a tag's history": lambda: charts.tag_history(EVENTS),
    "sizes of one": lambda: charts.variant_sizes({"minimal": MINIMAL}),
    "sizes of two": lambda: charts.variant_sizes({"full": FULL, "slim": SLIM}),
    "sizes of five": lambda: charts.variant_sizes(FIVE),
    "layers of one": lambda: charts.shared_layers({"slim": SLIM}),
    "layers of five": lambda: charts.shared_layers(FIVE),
    "pull of one": lambda: charts.pull_times({"empty": 0}),
    "measured pull": lambda: charts.pull_times({"full": 254e6}, measured={"full": (31, 29, 48)}),
    "pulls of five": lambda: charts.pull_times(
        PULLS, measured={"full": (31.0, 29.0, 48.0), "slim": (5.0,), "minimal": ()}
    ),
    "surface of five": lambda: charts.surface(SURFACE),
    "surface of two": lambda: charts.surface(
        {"full": {"packages": 431, "shells": 2}, "slim": {"packages": 118, "shells": 2}}
    ),
    "CVEs of one": lambda: charts.cves_since_release({"slim": months(3)}, **DEBIAN),
    "CVEs of five": lambda: charts.cves_since_release(
        CVES, **DEBIAN, blind="It can't see what Debian has not fixed yet. " * 3
    ),
    "CVEs alike at the top": lambda: charts.cves_since_release(
        {f"image {n}": months(100, 1000 - n) for n in range(5)}, **DEBIAN
    ),
    "no CVEs": lambda: charts.cves_since_release({"minimal": NO_MONTHS}, **DEBIAN),
    "map of one": lambda: charts.where_bytes_are({LONG: FULL_FILES}),
    "map of two": lambda: charts.where_bytes_are({"full": FULL_FILES, "slim": SLIM_FILES}),
    "map of alike": lambda: charts.where_bytes_are({LONG: SLIM_FILES, "slim": SLIM_FILES}),
    "map of stripped": lambda: charts.where_bytes_are(
        {"full": files(PACKAGES, {}), "slim": pd.concat([SLIM_FILES, files({"git": 0}, {})])}
    ),
    "map of a speck": lambda: charts.where_bytes_are(
        {"speck": files({}, {"/app/x": 12}), "full": FULL_FILES}
    ),
    "a class": lambda: charts.classroom(school("ada", LONG)),
    "a class of eight": lambda: charts.classroom(school(*"abcdefgh", exercises=4)),
    "a class of one": lambda: charts.classroom(school("ada", exercises=1, state="alone")),
    "a class before its first day": lambda: charts.classroom(
        school("ada", exercises=3, state="open")
    ),
    "a journey": lambda: charts.journey(steps(3, 2, 0, 0, 1, 3)),
    "a journey before its first day": lambda: charts.journey(steps(*[0] * 9, word=LONG)),
    "a journey's end": lambda: charts.journey(steps(3, 3)),
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


SAID = [
    ("sizes of two", "full takes 3.5 times the bytes of slim to download: 254.0 MB against 73."),
    ("sizes of two", "slim: 73.0 MB to download, 282.0 MB unpacked, in 4 layers"),
    ("sizes of one", "minimal: 8.0 MB to download, 30.0 MB unpacked\n"),
    # The base of two other images, and the shop's layer of one.
    ("layers of five", "2 shared layers, in colour: who has pulled one image fetches 64.0 MB less"),
    ("layers of five", "slim: 4 layers, 73.0 MB, 32.0 MB of it shared"),
    ("layers of five", "minimal: 1 layer, 8.0 MB, nothing shared"),
    ("layers of five", "A: base image python:3.13-slim, 32.0 MB; B: COPY shop shop, 5.2 kB."),
    ("layers of one", "One image alone shares nothing"),
    ("pulls of five", "a pull of full takes 3 min 23 s, of minimal 6.4 s: computed from the bytes"),
    ("pulls of five", "20 s on a typical line and 2.0 s on a fast line; measured 31 s"),
    ("pulls of five", "6.4 s on a slow line, 0.6 s on a typical line and 0.1 s on a fast line. "),
    ("pulls of five", "Slow is 10 Mbit/s, typical is 100 Mbit/s and fast is 1,000 Mbit/s"),
    ("pulls of five", "divided by the line's speed, nothing else. Measured: "),
    ("pulls of five", "31 s (3 runs)"),
    ("surface of five", "\nSmall bar charts, fewer is better. packages: full 431, slim 118, multi"),
    ("surface of five", f"multistage 99, minimal 0 and {LONG} not known; CVEs fixed"),
    ("surface of two", "full has 431 packages, slim 118. "),
    ("CVEs of one", "Never rebuilt since the release, slim would have 3 known CVEs"),
    ("CVEs of five", "full would have 1,961 known CVEs, minimal none"),
    ("CVEs of five", "until 23 November 2026, from Debian's own fixes"),
    ("CVEs of five", f"full 1,961, slim 212, multistage 211, minimal none known and {LONG} 210"),
    ("CVEs of five", "Source: Debian's own fixes, 23 November 2026."),
    ("CVEs of five", "but for kernel headers"),
    ("CVEs of five", "It can't see what Debian has not fixed yet."),
    ("CVEs alike at the top", "image 0 would have 1,000 known CVEs, image 4 996"),
    ("no CVEs", "No fix with a date is known in these packages since the release"),
    ("map of two", "times the bytes of slim. Equal areas are equal bytes"),
    ("map of two", "slim: 29.0 MB in 3 files, the largest parts are libc6 13.0 MB, /opt/venv 9.0"),
    ("map of two", "and perl-base 7.0 MB; 1 package that the other has not: 7.0 MB"),
    ("map of alike", f"{LONG} and slim have about as many bytes"),
    # What two images share is the same number in both heads; files may be empty.
    ("map of stripped", "2 packages of both: 62.0 MB"),
    ("map of stripped", "2 packages of both: 13.0 MB"),
    ("stages", "from nothing: 11 s, 3 steps had work to do (by stage: build 9.7 s and the last "),
    ("stages", "a line of the shop changed: 4.4 s, 2 steps had work to do"),
    ("stages", "all steps"),
    ("build times", f"cold: 11 s, 3 steps had work to do; {LONG}: 11 s, 0 steps had work to do"),
    ("build times", "…install -r requirements.txt"),
    ("layers", "The largest is 'RUN apt-get update"),
    ("layers", "with 41.0 MB, 39% of the"),
    ("layers", "RUN echo $HOME and $PATH"),
    ("pushes", f"first: 2.0 MB: 2 of 3 layers; {LONG}: 0 B: 0 of 3 layers"),
    ("sizes", "tiny: 1 B; huge: 3000.0 GB"),
    ("a class", "2 learners: 32 of 52 exercises passed"),
    ("a class", "00-word0 by 2; 00-word1 by 2; 00-word2 by 1; "),
    ("a class of eight", "19 of 32 exercises passed; 2 tried 00-word1 and have not"),
    ("a class of one", "Everybody passed everything: 1 receipt"),
    ("a journey", "2 of 6 steps are lit\n"),
    ("a journey", "Lit: Step 0 and Step 5. Step 0: 3 of 3 exercises passed; Step 1: 2 of 3 exer"),
    ("a journey before its first day", "None is lit yet\n"),
    ("a journey's end", "All 2 steps are lit"),
    ("conversation", "2 times HEAD is this layer there?: 404"),
    ("a tag's history", "the tag names aaaabbbb and the server runs 60000000"),
]


@pytest.mark.parametrize(("name", "fact"), SAID)
def test_title_alternative_text_and_picture_say_the_finding(name: str, fact: str) -> None:
    seen = " ".join(words(hard(name)).split())
    assert fact in f"{hard(name).title}\n{hard(name).alt}\n{seen}"


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


@pytest.mark.parametrize("name", ["map of two", "map of one", "map of a speck"])
def test_equal_areas_are_equal_bytes_in_all_maps_and_words_stay_in_them(name: str) -> None:
    (axes,) = hard(name).figure.axes
    drawn: Any = [each for each in axes.findobj(Rectangle) if each is not axes.patch]
    # The key is empty, and the squares before words have a dark edge.
    pieces = [piece for piece in drawn if piece.get_edgecolor()[:3] == (1, 1, 1)]
    [key] = [each for each in drawn if each.get_facecolor()[3] == 0]
    (size, unit), *_ = re.findall(r"this area is ([\d.]+) ([kM])B", words(hard(name)))
    scale = float(size) * {"M": 1e6, "k": 1e3}[unit] / (key.get_width() * key.get_height())
    found: dict[str, float] = {}
    places = [(piece, piece.get_window_extent()) for piece in pieces]
    for text in texts(hard(name)):
        box = Text.get_window_extent(text)
        for piece, place in places:
            if place.contains((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2):
                found[text.get_text()] = piece.get_width() * piece.get_height() * scale
                assert place.x0 <= box.x0 <= box.x1 <= place.x1, text.get_text()
                assert place.y0 <= box.y0 <= box.y1 <= place.y1, text.get_text()
    for start, size in {"gcc-14-x86-64": 70e6, "libicu-dev": 51e6, "git\n": 49e6}.items():
        own = [area for words, area in found.items() if words.startswith(start)]
        assert own == [pytest.approx(size, rel=1e-6)], start
    assert any(re.match(r"\+\d+|\d+ smaller\s+packages", words) for words in found)
    total = sum(p.get_width() * p.get_height() for p in pieces) * scale
    images = [FULL_FILES, SLIM_FILES] if name == "map of two" else [FULL_FILES]
    assert total == pytest.approx(sum(rows["bytes"].sum() for rows in images), rel=1e-6)


LENGTHS: dict[str, tuple[str, list[float]]] = {
    "sizes of two": ("megabytes", [254.0052, 997.012, 73.005292, 282.012]),
    "one layer": ("megabytes", [8.0]),
    "pushes": ("megabytes", [2.0001, 0.0]),
    "layers of one": ("megabytes", [73.005292]),
    "kilobytes": ("kilobytes", [3.0, 5.2]),
    "measured pull": ("seconds", [203.2, 20.32, 2.032, 31.0]),
}
"""What the axis counts, and how long each bar is in it; a measured pull's is the middle run."""


@pytest.mark.parametrize("name", LENGTHS)
def test_bars_are_as_long_as_their_numbers(name: str) -> None:
    (axes,) = hard(name).figure.axes
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


def test_stages_with_and_without_names() -> None:
    steps = BUILD.iloc[:3].assign(instruction="RUN true", seconds=1.0, cached=False)
    for stages in (["", "", ""], ["build", "build", ""], ["", "build", "build"], ["", "a", ""]):
        alt = charts.build_times({"cold": steps.assign(stage=stages)}).alt
        assert "cold: 3.0 s, 3 steps had work to do" in alt
        assert ("by stage" in alt) == any(stages)


def test_times_as_a_person_says_them() -> None:
    seconds = (0, 0.004, 0.012, 9.94, 9.96, 59.6, 203.2, 3599.7, 7500)
    said = ["0 s", "0 s", "0.01 s", "9.9 s", "10 s", "1 min", "3 min 23 s", "1 h", "2 h 5 min"]
    assert list(map(duration, seconds)) == said


@pytest.mark.parametrize("colour", [*style.PALETTE, style.DEEP, style.PALE, style.AMBER])
def test_text_on_a_colour_can_be_read(colour: str) -> None:
    shares = np.array([to_rgb(colour), to_rgb(figure.ink(colour))])
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    dark, bright = sorted(linear @ (0.2126, 0.7152, 0.0722) + 0.05)
    assert bright / dark >= 4.5


def test_neighbours_differ_in_brightness_too() -> None:
    pairs = [*itertools.pairwise(style.PALETTE[:5])]
    pairs += itertools.combinations([style.DEEP, style.PALE, style.AMBER], 2)
    for pair in pairs:
        one, other = np.array([to_rgb(colour) for colour in pair]) @ (0.299, 0.587, 0.114)
        assert abs(one - other) >= 0.125, pair


@pytest.mark.parametrize(
    "text", ["", "a", "gcc-14-x86-64-linux-gnu", "RUN apt-get  update\n && rm $A $B", "Ä…é" * 90]
)
@pytest.mark.parametrize("width", [32.0, 40.0, 200.0])
def test_what_is_fitted_fits(text: str, width: float) -> None:
    plain = " ".join(text.split())
    fitted = figure.fitted(text, width, 9)
    assert fitted == plain or ("…" in fitted and len(fitted) < len(plain))
    wrapped = figure.wrapped(text, width, 9) + figure.wrapped(text, width, 9, after="- ")
    for line in (fitted, *wrapped):
        assert figure.text_width(line, 9) <= width


def test_png(tmp_path: Path) -> None:
    chart = hard("sizes of two")
    with Image.open(chart.save(tmp_path / "a folder" / "sizes.PNG")) as picture:
        assert picture.width == pytest.approx(chart.figure.get_figwidth() * 176, abs=1)
        said = (picture.text["Title"], picture.text["Description"])  # type: ignore[attr-defined]
        assert said == (chart.title, chart.alt)
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert len(picture.convert("L").getcolors() or []) > 3


def test_svg_has_its_text_as_text_and_says_what_it_shows(tmp_path: Path) -> None:
    chart = hard("sizes of two")
    root = ElementTree.fromstring(chart.save(tmp_path / "chart.svg").read_bytes())
    written = [" ".join("".join(text.itertext()).split()) for text in root.iter(f"{SVG}text")]
    assert root.get("role") == "img"
    assert [child.tag for child in root][:2] == [f"{SVG}title", f"{SVG}desc"]
    assert [child.text for child in root][:2] == [chart.title, chart.alt]
    assert "slim" in written
    assert chart.svg() == chart.svg()


@pytest.mark.parametrize("file", ["chart.pdf", "chart", "a file/chart.png"])
def test_a_chart_that_cant_be_saved(file: str, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("here already")
    with pytest.raises(LabError, match=re.escape(str(tmp_path / file))):
        hard("one layer").save(tmp_path / file)


def test_a_chart_in_a_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    chart = charts.layers(MINIMAL.assign(instruction='the "first" <image>'))
    shown = ElementTree.fromstring(chart._repr_html_().replace("data-", "data").replace(">", "/>"))
    assert (shown.tag, shown.get("class"), shown.get("alt")) == ("img", "labapp-chart", chart.alt)
    assert 'the "first" <image>' in chart.alt
    data = (shown.get("src") or "").removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        picture.verify()
    chart.show()
    assert capsys.readouterr().out.strip() == f"Chart: {chart.alt}", "where only text is shown"


BAD: dict[str, Draw] = {
    "sizes of variants": lambda: charts.variant_sizes({}),
    "DataFrame": lambda: charts.shared_layers(SLIM),  # type: ignore[arg-type]
    "'list'": lambda: charts.variant_sizes({"slim": [1, 2]}),  # type: ignore[dict-item]
    "'slim'": lambda: charts.where_bytes_are({"slim": SLIM_FILES.iloc[:0]}),
    "'slim': the table has no column 'outcome', only 'bytes'": lambda: charts.pushes(
        {"slim": PUSH[["bytes"]]}
    ),
    "'-1' in the column 'bytes'": lambda: charts.sizes({"x": -1}, title="Sizes"),
    "'much' in the column 'download_bytes'": lambda: charts.layers(
        SLIM.assign(download_bytes="much")
    ),
    "'inf'": lambda: charts.sizes({"x": float("inf")}, title="Sizes"),
    "'nan'": lambda: charts.pull_times({"slim": float("nan")}),
    "'a', 'b', 'c'": lambda: charts.where_bytes_are(dict.fromkeys("abc", SLIM_FILES)),
    "'x'": lambda: charts.where_bytes_are({"x": files({}, {"/app/x": 0})}),
    "'month'": lambda: charts.cves_since_release({"slim": EVENTS}, **DEBIAN),
    "conversation": lambda: charts.conversation(REQUESTS.iloc[:0]),
    "history": lambda: charts.tag_history(EVENTS.iloc[:0]),
    "build times": lambda: charts.build_times({}),
    "class": lambda: charts.classroom(school()),
    "'step'": lambda: charts.journey(EVENTS),
    "surface": lambda: charts.surface({}),
}


@pytest.mark.parametrize("fact", BAD)
def test_what_cant_be_drawn_is_told_in_a_sentence(fact: str) -> None:
    with pytest.raises(LabError, match=re.escape(fact)):
        BAD[fact]()


def test_every_chart_is_drawn_here() -> None:
    drawn = {name for draw in HARD.values() for name in draw.__code__.co_names}
    every = {name for name, chart in vars(charts).items() if callable(chart)}
    assert every - {"Chart"} <= drawn
