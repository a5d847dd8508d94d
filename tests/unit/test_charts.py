"""Charts: what they say is true and can be read; saved, shown, and refused for nothing."""

from __future__ import annotations

import base64
import datetime
import functools
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import labapp  # not its charts: pytest looks at each name here, and matplotlib would be loaded
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
SPECK = files({}, {"/app/x": 12})
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
BLOBS = "/v2/shop/web/blobs"
BYTES = "here are the bytes of a layer " * 6
REQUESTS = pd.DataFrame(
    [
        ("GET", "are you a registry?", "", "/v2/", 200, 2),
        ("HEAD", "is this blob there?", "1ayer0ne", f"{BLOBS}/1", 404, 0),
        ("HEAD", "is this blob there?", "1ayertw0", f"{BLOBS}/2", 404, 0),
        ("POST", "start an upload", "", f"{BLOBS}/uploads/", 202, 0),
        ("HEAD", "is this blob there?", "theba5e0", f"{BLOBS}/0", 200, 0),
        ("POST", "start an upload", "", f"{BLOBS}/uploads/", 202, 0),
        ("PATCH", BYTES, "1ayertw0", f"{BLOBS}/uploads/2", 202, 9),
        ("PATCH", BYTES, "1ayer0ne", f"{BLOBS}/uploads/1", 202, 31e6),
        ("PUT", "finish the upload", "1ayer0ne", f"{BLOBS}/uploads/1", 201, 0),
        ("PUT", "finish the upload", "1ayertw0", f"{BLOBS}/uploads/2", 201, 0),
        # Not all engines ask before: this one sends the config, and makes sure.
        ("POST", "start an upload", "", f"{BLOBS}/uploads/", 202, 0),
        ("PUT", "finish the upload", "c0nf1g00", f"{BLOBS}/uploads/3", 201, 5e3),
        ("HEAD", "is this blob there?", "c0nf1g00", f"{BLOBS}/3", 200, 0),
        ("HEAD", "is this blob there?", "1ayer0ne", f"{BLOBS}/1", 200, 0),
        ("PUT", "store the manifest", "", "/v2/shop/web/manifests/1.0", 201, 0),
    ],
    columns=["method", "meaning", "digest", "path", "status", "bytes"],
).assign(client="docker/20.10")
SENT = pd.DataFrame(
    {
        "digest": ["sha256:theba5e0ff", "sha256:1ayer0neff", "sha256:1ayertw0ff"],
        "bytes": [448e6, 31e6, 9],
        "outcome": ["mounted", "sent", "sent"],
    }
)
EVENTS = pd.DataFrame(
    {
        "event": [f"event {n}: a colleague pushes {'again' * n}" for n in range(7)],
        "tag": "sha256:aaaabbbbcc",
        "running": [f"sha256:{n}00000000" for n in range(7)],
    }
)
PUSH = pd.DataFrame({"bytes": [31e6, 2e6, 100], "outcome": ["mounted", "sent", "sent"]})
TRIED = pd.DataFrame(
    {
        "tried": ["secret", "Can a container's user become more than it is? " * 2],
        "outcome": ["it is in what runs: it got through", "root " * 30],
        "through": [True, False],
    }
)


def steps(*passed: int, word: str = "tag") -> pd.DataFrame:
    """A journey of steps with three exercises each."""
    return pd.DataFrame(
        [(f"Step {n}", f"a moved {word} " * 3, word, done, 3) for n, done in enumerate(passed)],
        columns=["step", "attack", "control", "passed", "exercises"],
    )


Draw = Callable[[Any], "labapp.charts.Chart"]

DEBIAN = {"source": "Debian's own fixes", "date": DAY}

HARD: dict[str, Draw] = {
    "layers": lambda charts: charts.layers(pd.concat([SLIM, OWN])),
    "one layer": lambda charts: charts.layers(MINIMAL),
    "build times": lambda charts: charts.build_times(
        {"cold": SINGLE, LONG: SINGLE.assign(cached=True)}
    ),
    "stages": lambda charts: charts.build_times(
        {"from nothing": BUILD, "a line of the shop changed": AGAIN, "single stage": SINGLE}
    ),
    "sizes": lambda charts: charts.sizes({"tiny": 1, "huge": 3e12, LONG: 0}, title="Bytes " * 40),
    "pushes": lambda charts: charts.pushes(
        {"first": PUSH, LONG: PUSH.assign(outcome="already there")}
    ),
    "pushes of nothing": lambda charts: charts.pushes({"again": PUSH.assign(outcome="mounted")}),
    "conversation": lambda charts: charts.conversation(REQUESTS, layers=SENT),
    "conversation about nothing new": lambda charts: charts.conversation(
        REQUESTS[REQUESTS["method"] == "HEAD"], layers=SENT.assign(outcome="already there")
    ),
    "a tag's history": lambda charts: charts.tag_history(EVENTS),
    "sizes of one": lambda charts: charts.variant_sizes({"minimal": MINIMAL}),
    "sizes of two": lambda charts: charts.variant_sizes({"full": FULL, "slim": SLIM}),
    "sizes of five": lambda charts: charts.variant_sizes(FIVE),
    "layers of one": lambda charts: charts.shared_layers({"slim": SLIM}),
    "layers of five": lambda charts: charts.shared_layers(FIVE),
    "measured pull": lambda charts: charts.pull_times({"full": 254e6}, measured={"full": 31}),
    "pulls of five": lambda charts: charts.pull_times(PULLS, measured={"full": 31.0, "slim": 5.0}),
    "surface of five": lambda charts: charts.surface(SURFACE),
    "surface of two": lambda charts: charts.surface(
        {"full": {"packages": 431, "shells": 2}, "slim": {"packages": 118, "shells": 2}}
    ),
    "CVEs of one": lambda charts: charts.cves_since_release({"slim": months(3)}, **DEBIAN),
    "CVEs of five": lambda charts: charts.cves_since_release(
        CVES, **DEBIAN, blind="It can't see what Debian has not fixed yet. " * 3
    ),
    "CVEs alike at the top": lambda charts: charts.cves_since_release(
        {f"image {n}": months(100, 1000 - n) for n in range(5)}, **DEBIAN
    ),
    "no CVEs": lambda charts: charts.cves_since_release({"minimal": NO_MONTHS}, **DEBIAN),
    "map of one": lambda charts: charts.where_bytes_are({LONG: FULL_FILES}),
    "map of two": lambda charts: charts.where_bytes_are({"full": FULL_FILES, "slim": SLIM_FILES}),
    "map of alike": lambda charts: charts.where_bytes_are({LONG: SLIM_FILES, "slim": SLIM_FILES}),
    "map of stripped": lambda charts: charts.where_bytes_are(
        {"full": files(PACKAGES, {}), "slim": pd.concat([SLIM_FILES, files({"git": 0}, {})])}
    ),
    "map of a speck": lambda charts: charts.where_bytes_are({"speck": SPECK, "full": FULL_FILES}),
    "outcomes": lambda charts: charts.outcomes(
        {"before": TRIED.assign(through=True), LONG: TRIED.assign(outcome="refused")}
    ),
    "outcomes of one": lambda charts: charts.outcomes({"before": TRIED}),
    "a journey": lambda charts: charts.journey(steps(3, 2, 0, 0, 1, 3)),
    "a journey before its first day": lambda charts: charts.journey(steps(*[0] * 9, word=LONG)),
    "a journey's end": lambda charts: charts.journey(steps(3, 3)),
}


@functools.cache
def hard(name: str) -> labapp.charts.Chart:
    return HARD[name](labapp.charts)


class Label(NamedTuple):
    text: str
    size: float
    box: tuple[float, float, float, float]


@functools.cache
def labels(name: str) -> list[Label]:
    """What can be read in a chart: the texts that are drawn when it is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    drawn: list[Text] = []
    really_draw = Text.draw

    def draw(text: Text, *args: Any, **more: Any) -> None:
        drawn.append(text)
        really_draw(text, *args, **more)

    FigureCanvasAgg(hard(name).figure)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", draw)
        hard(name).figure.draw_without_rendering()
    return [
        # Without the line that an annotation may have.
        Label(text.get_text(), text.get_fontsize(), Text.get_window_extent(text).extents)
        for text in drawn
        if text.get_visible() and text.get_text().strip()
    ]


def rectangles(name: str) -> list[Any]:
    """The bars and pieces of a chart, in the order in which they were drawn."""
    from matplotlib.patches import Rectangle

    axes = hard(name).axes
    return [each for each in axes.findobj(Rectangle) if each is not axes.patch]


@pytest.mark.parametrize("name", HARD)
def test_labels_are_in_the_figure_large_enough_and_apart(name: str) -> None:
    found, edge = labels(name), hard(name).figure.bbox
    boxes = np.array([label.box for label in found])
    is_out = (boxes[:, :2] < edge.min).any(axis=1) | (boxes[:, 2:] > edge.max).any(axis=1)
    begin, end = boxes[:, None, :2], boxes[:, None, 2:]
    shared = np.minimum(end, end.swapaxes(0, 1)) - np.maximum(begin, begin.swapaxes(0, 1))
    both = np.triu((shared[..., 0] > 1) & (shared[..., 1] > 1.5), k=1)
    together = [(found[a].text, found[b].text) for a, b in np.argwhere(both)]
    assert [found[number].text for number in np.flatnonzero(is_out)] == []
    assert together == []
    assert min(label.size for label in found) >= 9
    assert len(found) >= 3


SAID = [
    ("sizes of two", "full takes 3.5 times the bytes of slim to download: 254.0 MB against 73."),
    ("sizes of two", "slim to download: 73.0 MB, 4 layers; slim unpacked: 282.0 MB"),
    ("sizes of one", "minimal has 8.0 MB to download\n"),
    # The base of two other images, and the shop's layer of one.
    ("layers of five", "2 shared layers, in colour: who has pulled one image fetches 64.0 MB less"),
    ("layers of five", "slim: 73.0 MB in 4 layers, 32.0 MB of it shared"),
    ("layers of five", "minimal: 8.0 MB in 1 layer, nothing shared"),
    ("layers of five", "A: base image python:3.13-slim, 32.0 MB; B: COPY shop shop, 5.2 kB."),
    ("layers of one", "One image alone shares nothing"),
    ("pulls of five", "a pull of full takes 3 min 23 s, of minimal 6.4 s: computed from the bytes"),
    ("pulls of five", "full fast (1,000 Mbit/s): 2.0 s; full measured here: 31 s"),
    ("pulls of five", "full slow (10 Mbit/s): 3 min 23 s; full typical (100 Mbit/s): 20 s"),
    ("pulls of five", "divided by the line's speed, nothing else. Measured: "),
    ("surface of five", "packages full: 431; packages slim: 118; packages multistage: 99; packa"),
    ("surface of five", f"; packages {LONG}: not known; CVEs"),
    ("surface of two", "full has 431 packages, slim 118. "),
    ("CVEs of one", "Since the release, 3 CVEs were fixed in packages of slim\n"),
    ("CVEs of five", "1,961 CVEs were fixed in packages of full, 0 in those of minimal\n"),
    ("CVEs of five", f"full 1,961, slim 212, multistage 211, minimal none known and {LONG} 210"),
    ("CVEs of five", "Source: Debian's own fixes, 23 November 2026."),
    ("CVEs of five", "It can't see what Debian has not fixed yet."),
    ("no CVEs", "No fix with a date is known in these packages since the release"),
    ("map of two", "times the bytes of slim. Equal areas are equal bytes"),
    ("map of two", "slim: 29.0 MB in 3 files, the largest parts are libc6 13.0 MB, /opt/venv 9.0"),
    ("map of alike", f"{LONG} and slim have about as many bytes"),
    # What two images share is the same number in both heads; files may be empty.
    ("map of stripped", "2 packages of both: 62.0 MB"),
    ("map of stripped", "2 packages of both: 13.0 MB"),
    ("stages", "from nothing (11 s) build: 9.7 s, 2 steps ran; from nothing (11 s) the "),
    ("stages", "a line of the shop changed (4.4 s) build: 3.1 s, 1 step ran"),
    ("stages", "all steps"),
    ("build times", f"cold: 11 s, 3 steps ran; {LONG}: 11 s, 0 steps ran"),
    ("build times", "A RUN pip --python /opt/venv install -r requirements.txt"),
    ("layers", "RUN apt-get update && apt-get install -y gcc"),
    ("layers", "rm -rf /var/lib/apt/lists/*: 41.0 MB"),
    ("layers", "105.0 MB to download, 39% of it in the largest"),
    ("pushes", f"first: 2.0 MB: 2 of 3 layers; {LONG}: 0 B: 0 of 3 layers"),
    ("sizes", "tiny: 1 B; huge: 3000.0 GB"),
    ("pushes of nothing", "0 B 1 B sent (layers, compressed)"),
    ("outcomes", f"What got through: 2 of 2 (before) and 1 of 2 ({LONG})"),
    ("outcomes", f"secret, {LONG}: refused"),
    ("a journey", "2 of 6 steps are lit\n"),
    ("a journey", "Lit: Step 0 and Step 5. Step 0: 3 of 3 exercises passed; Step 1: 2 of 3 exer"),
    ("conversation", "2 of 3 layers had to travel, and the manifest came last"),
    ("conversation", "there already: 1 layer, 448.0 MB: HEAD is this blob there?: 200; new"),
    ("conversation", "new: 2 layers, 31.0 MB: 2 times HEAD is this blob there?: 404; 2 times POST"),
    ("conversation about nothing new", "there already: 3 layers, 479.0 MB: 2 times HEAD"),
    ("a tag's history", "the tag names aaaabbbb and the server runs 60000000"),
]


@pytest.mark.parametrize(("name", "fact"), SAID)
def test_title_alternative_text_and_picture_say_the_finding(name: str, fact: str) -> None:
    seen = " ".join(" ".join(label.text for label in labels(name)).split())
    assert fact in f"{hard(name).title}\n{hard(name).alt}\n{seen}"


def test_lines_begin_with_the_release_and_end_today_with_their_last_number() -> None:
    lines = hard("CVEs of five").axes.lines
    first = {(str(line.get_xdata()[0])[:10], line.get_ydata()[0]) for line in lines}
    last = [(str(line.get_xdata()[-1])[:10], line.get_ydata()[-1]) for line in lines]
    assert first == {("2024-07-01", 0)}
    assert last == [("2026-11-23", cves) for cves in (1961, 212, 211, 0, 210)]
    assert list(lines[4].get_ydata()[:3]) == [0, 0, 210], "nothing before its first month"
    assert len({line.get_linestyle() for line in lines}) >= 4
    assert len({line.get_marker() for line in lines}) == 5


@pytest.mark.parametrize("name", ["map of two", "map of one", "map of a speck"])
def test_equal_areas_are_equal_bytes_in_all_maps_and_words_stay_in_them(name: str) -> None:
    # The squares before words have a dark edge.
    pieces = [each for each in rectangles(name) if each.get_edgecolor()[:3] == (1, 1, 1)]
    areas = [piece.get_width() * piece.get_height() for piece in pieces]
    rows = {"map of one": [FULL_FILES], "map of two": [FULL_FILES, SLIM_FILES]}
    total = sum(each["bytes"].sum() for each in rows.get(name, [FULL_FILES, SPECK]))
    found: dict[str, float] = {}
    places = [piece.get_window_extent() for piece in pieces]
    for label in labels(name):
        x0, y0, x1, y1 = label.box
        for place, area in zip(places, areas, strict=True):
            if place.contains((x0 + x1) / 2, (y0 + y1) / 2):
                found[label.text] = area * total / sum(areas)
                assert place.contains(x0, y0) and place.contains(x1, y1), label.text
    for start, size in {"gcc-14-x86-64": 70e6, "libicu-dev": 51e6, "git\n": 49e6}.items():
        own = [area for text, area in found.items() if text.startswith(start)]
        assert own == [pytest.approx(size, rel=1e-6)], start
    assert any(re.match(r"\+\d+|\d+ smaller\s+packages", text) for text in found)


def test_a_layer_has_the_colour_of_what_it_is() -> None:
    from matplotlib.colors import to_hex

    bars = [to_hex(bar.get_facecolor()) for bar in rectangles("sizes of two")]
    public = ["# debian.sh --arch 'amd64'", "RUN set -eux; apt-get install -y tzdata", APT]
    more = ["COPY wheels wheels", "RUN A=1 pip install -r requirements.txt", "COPY shop shop"]
    rows = pd.DataFrame({"instruction": public + more, "download_bytes": 1})
    shown = labapp.charts.layers(rows).axes.findobj(type(rectangles("sizes of two")[0]))
    other = [to_hex(bar.get_facecolor()) for bar in shown][:6]
    base, tools, libraries, application = other[0], other[2], other[3], other[5]
    assert other == [base, base, tools, libraries, libraries, application]
    assert len({base, tools, libraries, application}) == 4
    full, slim = [base, application], [base, tools, application, application]
    assert bars == [*full, *full, *slim, *slim]


LENGTHS: dict[str, tuple[str, list[float]]] = {
    "sizes of two": ("MB", [254005200, 997012000, 73005292, 282012000]),
    "one layer": ("MB", [8e6]),
    "pushes": ("kB", [2000100, 0]),
    "layers of one": ("MB", [73005292]),
    "build times": ("seconds", [10.92, 10.92]),
    "layers": ("MB", [32e6, 41e6, 92, 5200, 32e6, 0, *(3e3 * n for n in range(5))]),
    "sizes": ("GB", [1, 3e12, 0]),
    "measured pull": ("seconds", [203.2, 20.32, 2.032, 31.0]),
}
"""What the axis counts, and how long each bar is in it."""


@pytest.mark.parametrize("name", LENGTHS)
def test_bars_are_as_long_as_their_numbers(name: str) -> None:
    unit, expected = LENGTHS[name]
    lengths: dict[float, float] = {}
    for bar in rectangles(name):
        row = round(bar.get_y(), 3)
        lengths[row] = lengths.get(row, 0.0) + bar.get_width()
    assert list(lengths.values()) == pytest.approx(expected)
    axis = hard(name).axes.xaxis
    assert unit in axis.get_label_text() or unit in axis.get_ticklabels()[1].get_text()


def test_a_step_has_one_colour_in_all_bars_and_the_key_says_which() -> None:
    from matplotlib.colors import to_hex

    looks: dict[str, set[str]] = {}
    steps = [*BUILD.itertuples(), *AGAIN.itertuples(), *SINGLE.itertuples()]
    bars = sorted(rectangles("stages"), key=lambda bar: round(bar.get_y(), 3))
    # Steps before the first stage take no time, and no row.
    shown = [
        step for step in steps if getattr(step, "stage", "all") or "ARG" not in step.instruction
    ]
    for bar, step in zip(bars, shown, strict=True):
        looks.setdefault(str(step.instruction), set()).add(to_hex(bar.get_facecolor()))
    key = [text for text in hard("stages").axes.texts if text.get_text() == "■"]
    named = [text.get_text() for text in hard("stages").axes.texts if text.get_text()[1:3] == "  "]
    for square, text in zip(key, named, strict=False):
        assert to_hex(square.get_color()) in looks[text[3:]]
    assert len(key) == len({to_hex(square.get_color()) for square in key}) == 4


def test_a_stage_begins_where_the_one_before_it_ended() -> None:
    rows = {round(bar.get_y(), 3): bar.get_x() for bar in reversed(rectangles("stages"))}
    assert sorted(rows.values()) == pytest.approx([0, 0, 0, 3.11, 9.71])


def test_stages_with_and_without_names() -> None:
    steps = BUILD.iloc[:3].assign(instruction="RUN true", seconds=1.0, cached=False)
    for stages in (["", "", ""], ["build", "build", ""], ["", "build", "build"], ["", "a", ""]):
        alt = labapp.charts.build_times({"cold": steps.assign(stage=stages)}).alt
        assert "cold (3.0 s)" in alt if any(stages) else "cold: 3.0 s, 3 steps ran" in alt
        assert ("stage's row" in alt) == any(stages)


def test_text_on_a_colour_can_be_read() -> None:
    from matplotlib.colors import to_rgb

    style = labapp.charts.style
    for colour in (*style.PALETTE, style.PALE, style.AMBER, "white"):
        shares = np.array([to_rgb(colour), to_rgb(labapp.charts.figure.ink(colour))])
        linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        dark, bright = sorted(linear @ (0.2126, 0.7152, 0.0722) + 0.05)
        assert bright / dark >= 4.5, colour


def test_a_chart_is_saved_with_its_words(tmp_path: Path) -> None:
    chart = hard("sizes of two")
    with Image.open(chart.save(tmp_path / "a folder" / "sizes.PNG")) as picture:
        assert picture.width == pytest.approx(chart.figure.get_figwidth() * 176, abs=1)
        said = (picture.text["Title"], picture.text["Description"])  # type: ignore[attr-defined]
        assert said == (chart.title, chart.alt)
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert len(picture.convert("L").getcolors() or []) > 3
    root = ElementTree.fromstring(chart.save(tmp_path / "chart.svg").read_bytes())
    written = [" ".join("".join(text.itertext()).split()) for text in root.iter(f"{SVG}text")]
    assert root.get("role") == "img"
    assert [(child.tag, child.text) for child in root][:2] == [
        (f"{SVG}title", chart.title),
        (f"{SVG}desc", chart.alt),
    ]
    assert "slim" in written
    assert chart.svg() == chart.svg()


@pytest.mark.parametrize("file", ["chart.pdf", "chart", "a file/chart.png"])
def test_a_chart_that_cant_be_saved(file: str, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("here already")
    with pytest.raises(LabError, match=re.escape(str(tmp_path / file))):
        hard("one layer").save(tmp_path / file)


def test_a_chart_in_a_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    chart = labapp.charts.layers(MINIMAL.assign(instruction='the "first" <image>'))
    shown = ElementTree.fromstring(chart._repr_html_().replace("data-", "data").replace(">", "/>"))
    assert (shown.tag, shown.get("class"), shown.get("alt")) == ("img", "labapp-chart", chart.alt)
    assert 'the "first" <image>' in chart.alt
    data = (shown.get("src") or "").removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        picture.verify()
    chart.show()
    assert capsys.readouterr().out.strip() == f"Chart: {chart.alt}", "where only text is shown"


def test_every_chart_is_drawn_here_and_tells_that_there_is_nothing_to_draw() -> None:
    drawn = {name for draw in HARD.values() for name in draw.__code__.co_names}
    more = {
        "sizes": {"title": "Sizes"},
        "conversation": {"layers": SENT},
        "cves_since_release": DEBIAN,
    }
    every = {name: chart for name, chart in vars(labapp.charts).items() if callable(chart)}
    del every["Chart"]
    assert every.keys() <= drawn
    for name, chart in every.items():
        with pytest.raises(LabError, match="drawing"):
            chart(pd.DataFrame(), **more.get(name, {}))


BAD: dict[str, Draw] = {
    "of 'slim': it takes a table that has rows": lambda charts: charts.where_bytes_are(
        {"slim": SLIM_FILES.iloc[:0]}
    ),
    "'bytes', 'outcome', not one of 3 rows with 'bytes'": lambda charts: charts.pushes(
        {"slim": PUSH[["bytes"]]}
    ),
    "not 'list'": lambda charts: charts.variant_sizes({"slim": [1, 2]}),  # type: ignore[dict-item]
    "'a', 'b', 'c'": lambda charts: charts.where_bytes_are(dict.fromkeys("abc", SLIM_FILES)),
    "'x'": lambda charts: charts.where_bytes_are({"x": files({}, {"/app/x": 0})}),
    "'month'": lambda charts: charts.cves_since_release({"slim": EVENTS}, **DEBIAN),
}


@pytest.mark.parametrize("fact", BAD)
def test_what_cant_be_drawn_is_told_in_a_sentence(fact: str) -> None:
    with pytest.raises(LabError, match=re.escape(fact)):
        BAD[fact](labapp.charts)
