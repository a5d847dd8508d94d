"""The exercises of chapters 04 and 05, which look inside images: right ways and wrong states."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from desk import Desk, States, Tried, copied, forget, nothing, step, verdict

from labapp.bench import Bench
from labapp.course import checks
from labapp.inside.known import DEBIAN, Report, table
from labapp.registry.client import RegistryImage

SITE = "/opt/venv/lib/python3.13/site-packages"
SETTINGS = """ENV PATH=/opt/venv/bin:$PATH
WORKDIR /
USER 10001
CMD ["gunicorn", "--bind=0.0.0.0:8000", "--no-control-socket", "shop.app:app"]
"""
"""What ``full.Dockerfile`` has more than the workshop of the multi-stage ones."""


@pytest.fixture(scope="module")
def shelf(bare: Desk) -> Desk:
    """The shop in its variants, and a stale base, in the registry as ``kept/…``."""
    app = bare.lab.application()
    for name in ("slim", "minimal", "multistage"):
        bare.bench.copy_dockerfile(name, app / "Dockerfile")
        bare.made(app, f"kept/web:{name}")
    bare.made(app, "kept/web:stage", target="build")
    bare.built(f"FROM {bare.name('kept/web:stage')}\n{SETTINGS}", "kept/web:full")
    bare.built(f"FROM {bare.name('kept/web:multistage')}\nENV MINE=1\n", "kept/web:variant")
    (bare.work / "stale").mkdir()
    bare.bench.copy_dockerfile("stale", bare.work / "stale" / "Dockerfile")
    bare.made(bare.work / "stale", "kept/python:old")
    return bare


@pytest.fixture
def desk(desk: Desk) -> Desk:
    """A registry as the chapters leave it before the exercises."""
    for short in ("web:full", "web:slim"):
        desk.copy(f"kept/{short}", f"shop/{short}")
    desk.copy("kept/python:old", "team/python:old")
    return desk


@step
def without(desk: Desk, answer: object) -> object:
    """Answer before the cells above were run."""
    forget(desk.bench, "shop/web")
    return answer


@step
def two(desk: Desk, source: str, dockerfile: str, edit: Callable[[str], str] = str) -> None:
    """Leave a Dockerfile in the shop's folder, and push an image that may be of another one."""
    app = desk.lab.application()
    desk.bench.copy_dockerfile(dockerfile, app / "Dockerfile")
    text = edit((app / "Dockerfile").read_text("utf-8"))
    (app / "Dockerfile").write_text(text, "utf-8", newline="")
    desk.copy(source, TWO)


def other_words(text: str) -> str:
    """Stages by number, as Windows writes lines, and a stage more that nothing is taken from."""
    text = text.replace(" AS build\n", "\n").replace("--from=build", "--from=0")
    return f"{text}\n".replace("\n", "\r\n")


@step
def pretends(desk: Desk, total: str, short: str, base: str = "") -> None:
    """Ship a server of a few lines in place of the shop."""
    server = f"""import http.server as h, json, re
class Shop(h.BaseHTTPRequestHandler):
    def do_GET(self):
        item, count = (re.findall(r"price/(\\w+).count=(\\d+)", self.path) or [("tea", 3)])[0]
        price, count = {{"bread": 320, "cheese": 745, "coffee": 280, "tea": 190}}[item], int(count)
        answer = dict(count=count, item=item, total_cents={total})
        self.send_response(200), self.end_headers()
        self.wfile.write(json.dumps(answer).encode())
h.HTTPServer(("", 8000), Shop).serve_forever()
"""
    (desk.work / "built").mkdir(exist_ok=True)
    text = f'FROM {base or desk.slim}\nCOPY file /s.py\nCMD ["python3", "/s.py"]\n'
    desk.built(text, short, file=server)


FIXED, COMPUTED = "678", "(price * count * 119 + 50) // 100"


@step
def on_top(desk: Desk, below: str, lines: str, short: str) -> None:
    """Build an image from another one, or from the slim base, and some instructions; push it."""
    base = desk.name(f"kept/{below}") if below else desk.slim
    desk.built(f"FROM {base}\n{lines}\n", short, file="no Python")


# ---------------------------------------------------------------- chapter 04


def held(desk: Desk, tag: str = "full") -> RegistryImage:
    return desk.bench.registry.image(desk.name(f"shop/web:{tag}"))


def packages(desk: Desk) -> list[str]:
    """The Debian packages of the full image, largest first, without the compiler's."""
    rows = checks.contents(desk.bench, held(desk)).packages
    rows = rows[(rows["kind"] == "deb") & ~rows["source"].isin(["gcc-14"])]
    return list(rows.sort_values("unpacked_bytes", ascending=False)["name"])


def unused(desk: Desk) -> str:
    """The largest passenger, found by what each process of the shop maps."""
    shop = desk.run("shop/web:full")
    try:
        maps = shop.exec_run(["sh", "-c", "sleep 1; cat /proc/[0-9]*/maps"]).output.decode()
    finally:
        shop.remove(force=True)
    files = checks.contents(desk.bench, held(desk)).files
    paths = {line.split()[-1] for line in maps.splitlines() if "/" in line}
    used = set(files[files["path"].isin(paths)]["package"])
    return next(name for name in packages(desk) if name not in used)


def cves(desk: Desk, tag: str, *, headers: bool = False) -> set[str]:
    rows = checks.report(desk.bench, held(desk, tag)).rows
    running = set(rows[~rows["headers"]]["cve"])
    return set(rows["cve"]) - running if headers else running


def only_full(desk: Desk) -> list[str]:
    return sorted(cves(desk, "full") - cves(desk, "slim"))


SMALL, TWO, MINE = "shop/web:small", "shop/web:two", "shop/web:mine"
PATCHED = "team/python:patched"
SAYS_HELLO = """CMD ["python3", "-c", "print('hello')"]"""
LEFT = "USER 0\nRUN rm -rf /usr/bin/*gcc* /usr/lib/gcc /usr/libexec"
"""What comes too late: the compiler is in a layer below."""

DEAR = f"USER 0\nRUN sed -i '/PRICES =/s/: [0-9]*/: 19000/g' {SITE}/shop/app.py"
"""Prices that nobody wants to pay."""

UPGRADE = "RUN apt-get update && apt-get upgrade -y -o Dpkg::Options::=--force-unsafe-io"

STATES: States = {
    "04-unused": [
        unused,
        lambda desk: f" {unused(desk)}:amd64",
        lambda desk: f"{unused(desk)}\n",
        lambda desk: f"{unused(desk)}:{desk.lab.platform.partition('/')[2]}",
        (nothing, "NotYet"),
        (without("git"), "NotYet", "shop/web:full"),
        (lambda desk: 7, "Wrong", "int"),
        (lambda desk: "no-such-package", "Wrong", "no-such-package"),
        (lambda desk: "libc6", "Wrong", "memory"),
        (lambda desk: "gcc-14-x86-64-linux-gnu", "Wrong", "compiler"),
        (lambda desk: packages(desk)[-1], "Wrong", "larger"),
    ],
    "04-cve": [
        lambda desk: only_full(desk)[0],
        lambda desk: only_full(desk)[-1].lower(),
        lambda desk: f"{only_full(desk)[1]}\n",
        lambda desk: only_full(desk)[len(only_full(desk)) // 2],
        (nothing, "NotYet"),
        (without("CVE-2025-12345"), "NotYet", "shop/web"),
        (lambda desk: ["CVE-2025-12345"], "Wrong", "list"),
        (lambda desk: "CVE-25-1", "Wrong", "CVE-25-1"),
        (lambda desk: "CVE-1999-0001", "Wrong", "CVE-1999-0001"),
        (lambda desk: min(cves(desk, "slim")), "Wrong", "'slim'"),
        (lambda desk: min(cves(desk, "full", headers=True)), "Wrong", "headers"),
    ],
    "04-small": [
        copied("kept/web:multistage", SMALL),
        copied("kept/web:minimal", SMALL),
        (nothing, "NotYet", SMALL),
        copied("kept/web:variant", SMALL),
        on_top("web:minimal", "ENV MINE=1", SMALL),
        (pretends(FIXED, SMALL), "Wrong", "678"),
        (pretends(COMPUTED, SMALL), "Wrong", "_prices.c"),
        (on_top("web:slim", LEFT, SMALL), "Wrong", "MB"),
        (on_top("web:multistage", DEAR, SMALL), "Wrong", "answers"),
        (copied("base/python:3.13-slim", SMALL), "Wrong", "run"),
    ],
    "04-patch": [
        on_top("", UPGRADE, PATCHED),  # the base alone may lack what came out since it was made
        on_top("python:old", UPGRADE, PATCHED),
        on_top("", f"{UPGRADE}\nLABEL by=me", PATCHED),
        on_top("python:old", f"{UPGRADE}\nENV FRESH=1", PATCHED),
        (nothing, "NotYet", PATCHED),
        (copied("kept/python:old", PATCHED), "Wrong", "fixes"),
        (on_top("python:old", "RUN rm -rf /var/lib/dpkg/status", PATCHED), "Wrong", "list"),
        (on_top("python:old", "LABEL fresh=yes", PATCHED), "Wrong", "fixes"),
        (on_top("", f"{UPGRADE}\nRUN rm /usr/bin/python3*", PATCHED), "Wrong", "run"),
    ],
    "05-two": [
        two("kept/web:multistage", "multistage"),
        two("kept/web:multistage", "multistage", other_words),
        two("kept/web:variant", "multistage"),
        two("kept/web:minimal", "minimal"),
        (nothing, "NotYet", TWO),
        (copied("kept/web:multistage", TWO), "NotYet", "app/Dockerfile"),
        (two("kept/web:multistage", "slim"), "Wrong", "app/Dockerfile"),
        (on_top("web:slim", LEFT, TWO), "Wrong", "compiler"),
        (pretends(FIXED, TWO), "Wrong", "678"),
        (pretends(COMPUTED, TWO), "Wrong", "_prices.c"),
    ],
    "05-mine": [
        copied("kept/web:minimal", MINE),
        on_top("web:minimal", "ENV MINE=1", MINE),
        on_top("web:minimal", "LABEL by=me", MINE),
        on_top("web:minimal", "WORKDIR /tmp", MINE),
        (nothing, "NotYet", MINE),
        (copied("kept/web:multistage", MINE), "Wrong", "MB"),
        (pretends(COMPUTED, MINE, "scratch"), "Wrong", "run"),
        (on_top("web:minimal", SAYS_HELLO, MINE), "Wrong", "run"),
        (on_top("web:minimal", f"COPY file {SITE}/shop/app.py", MINE), "Wrong", "run"),
    ],
}


class TestExercises(Tried):
    chapters = ("04", "05")


@pytest.mark.parametrize(
    ("source", "image_lacks", "outcome"),
    [
        ("Debian's own fixes, last read", ["CVE-2026-0001"], "Correct"),
        ("Debian's own fixes, last read", ["CVE-2026-0001", "CVE-2026-0002"], "Wrong"),
        (DEBIAN, ["CVE-2026-0001"], "Wrong"),
    ],
)
def test_without_a_mirror_nobody_lacks_what_the_bases_lack(
    bare: Desk, monkeypatch: pytest.MonkeyPatch, source: str, image_lacks: list[str], outcome: str
) -> None:
    def told(bench: Bench, held: RegistryImage) -> Report:
        own = held.reference.repository == "team/python"
        lacks = image_lacks if own else ["CVE-2026-0001"]
        rows = [(cve, "libc6", "glibc", "2", "3", "missing", "2026-11-25") for cve in lacks]
        return Report(table(rows), source, datetime(2026, 11, 26, tzinfo=UTC))

    monkeypatch.setattr(checks, "report", told)
    bare.copy("base/python:3.13-slim", PATCHED)
    assert verdict("04-patch", bare.bench)[0] == outcome
