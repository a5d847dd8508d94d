"""The exercises of chapters 04 and 05, which look inside images: right ways and wrong states."""

from __future__ import annotations

from pathlib import Path

import pytest
from desk import Desk, Right, Tried, Wrong, base, empty, forget, named, nothing, step, unanswered

from labapp.bench import Bench
from labapp.course import checks
from labapp.registry.client import RegistryImage

SITE = "/opt/venv/lib/python3.13/site-packages"


@pytest.fixture(scope="module")
def shelf(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """The shop in its variants, and a stale base, in the registry as ``kept/…``."""
    empty(bench)
    desk = Desk(bench).at(tmp_path_factory.mktemp("shop"))
    app = desk.lab.application()
    source = app / "shop" / "app.py"
    for name in ("full", "slim", "minimal", "multistage"):
        desk.bench.copy_dockerfile(name, app / "Dockerfile")
        desk.made(app, f"kept/web:{name}")
    desk.made(app, "kept/web:stage", target="build")
    source.write_text(source.read_text().replace('"tea": 190', '"tea": 19000'))
    desk.made(app, "kept/web:dear")
    stale = desk.work / "stale"
    stale.mkdir()
    desk.bench.copy_dockerfile("stale", stale / "Dockerfile")
    desk.made(stale, "kept/python:old")
    return desk


@pytest.fixture
def desk(shelf: Desk, tmp_path: Path) -> Desk:
    """A registry as the chapters leave it before the exercises."""
    forget(shelf.bench, "shop/web", "shop/workshop", "team/python")
    shelf.copy("kept/web:full", "shop/web:full")
    shelf.copy("kept/web:slim", "shop/web:slim")
    shelf.copy("kept/python:old", "team/python:old")
    return shelf.at(tmp_path)


@step
def without(desk: Desk, answer: object) -> object:
    """Answer before the cells above were run."""
    forget(desk.bench, "shop/web")
    return answer


@step
def on_top(desk: Desk, below: str, lines: str, short: str) -> None:
    """Build an image from another one, or from the slim base, and some instructions; push it."""
    base = desk.name(f"kept/{below}") if below else desk.slim
    desk.built(f"FROM {base}\n{lines}\n", short, file="no Python")


# ---------------------------------------------------------------- chapter 04


def full(desk: Desk) -> RegistryImage:
    return desk.bench.registry.image(desk.name("shop/web:full"))


def packages(desk: Desk) -> list[str]:
    """The Debian packages of the full image, largest first, without the compiler's."""
    rows = checks.contents(desk.bench, full(desk)).packages
    rows = rows[(rows["kind"] == "deb") & ~rows["source"].isin(["gcc-14"])]
    return list(rows.sort_values("unpacked_bytes", ascending=False)["name"])


def unused(desk: Desk) -> str:
    """The largest passenger, found by what each process of the shop maps."""
    shop = desk.run("shop/web:full")
    try:
        maps = shop.exec_run(["sh", "-c", "sleep 1; cat /proc/[0-9]*/maps"]).output.decode()
    finally:
        shop.remove(force=True)
    files = checks.contents(desk.bench, full(desk)).files
    paths = {line.split()[-1] for line in maps.splitlines() if "/" in line}
    used = set(files[files["path"].isin(paths)]["package"])
    return next(name for name in packages(desk) if name not in used)


def cves(desk: Desk, tag: str, *, headers: bool = False) -> set[str]:
    held = desk.bench.registry.image(desk.name(f"shop/web:{tag}"))
    rows = checks.report(desk.bench, held).rows
    running = set(rows[~rows["headers"]]["cve"])
    return set(rows["cve"]) - running if headers else running


def only_full(desk: Desk) -> list[str]:
    return sorted(cves(desk, "full") - cves(desk, "slim"))


SMALL, TWO, MINE = "shop/web:small", "shop/web:two", "shop/web:mine"
PATCHED, WORKSHOP = "team/python:patched", "shop/workshop:1"
SAYS_HELLO = """CMD ["python3", "-c", "print('hello')"]"""
LEFT = "USER 0\nRUN rm -rf /usr/bin/*gcc* /usr/lib/gcc /usr/libexec"
"""What comes too late: the compiler is in a layer below."""

RIGHT: Right = {
    "04-unused": [unused, lambda desk: f" {unused(desk)}:amd64"],
    "04-cve": [lambda desk: only_full(desk)[0], lambda desk: only_full(desk)[-1].lower()],
    "04-small": [named("web:multistage", SMALL), named("web:minimal", SMALL)],
    "04-patch": [
        base("python:3.13-slim", PATCHED),
        on_top("python:old", "RUN apt-get update && apt-get upgrade -y", PATCHED),
    ],
    "05-two": [named("web:multistage", TWO), named("web:minimal", TWO)],
    "05-target": [
        named("web:stage", WORKSHOP),
        on_top("web:stage", "RUN gcc --version", WORKSHOP),
    ],
    "05-mine": [named("web:minimal", MINE), on_top("web:minimal", "ENV MINE=1", MINE)],
}

WRONG: Wrong = {
    "04-unused": [
        (unanswered, "NotYet"),
        (without("git"), "NotYet", "shop/web:full"),
        (lambda desk: 7, "Wrong", "int"),
        (lambda desk: "no-such-package", "Wrong", "no-such-package"),
        (lambda desk: "libc6", "Wrong", "memory"),
        (lambda desk: "gcc-14-x86-64-linux-gnu", "Wrong", "compiler"),
        (lambda desk: packages(desk)[-1], "Wrong", "larger"),
    ],
    "04-cve": [
        (unanswered, "NotYet"),
        (without("CVE-2025-12345"), "NotYet", "shop/web"),
        (lambda desk: ["CVE-2025-12345"], "Wrong", "list"),
        (lambda desk: "CVE-25-1", "Wrong", "CVE-25-1"),
        (lambda desk: "CVE-1999-0001", "Wrong", "CVE-1999-0001"),
        (lambda desk: min(cves(desk, "slim")), "Wrong", "'slim'"),
        (lambda desk: min(cves(desk, "full", headers=True)), "Wrong", "headers"),
    ],
    "04-small": [
        (nothing, "NotYet", SMALL),
        (named("web:slim", SMALL), "Wrong", "MB"),
        (on_top("web:slim", LEFT, SMALL), "Wrong", "MB"),
        (named("web:dear", SMALL), "Wrong", "67830"),
        (base("python:3.13-slim", SMALL), "Wrong", "run"),
    ],
    "04-patch": [
        (nothing, "NotYet", PATCHED),
        (named("python:old", PATCHED), "Wrong", "fixes"),
        (on_top("python:old", "RUN rm -rf /var/lib/dpkg/status", PATCHED), "Wrong", "list"),
        (on_top("", "RUN rm /usr/bin/python3*", PATCHED), "Wrong", "run"),
    ],
    "05-two": [
        (nothing, "NotYet", TWO),
        (named("web:slim", TWO), "Wrong", "compiler"),
        (on_top("web:slim", LEFT, TWO), "Wrong", "compiler"),
        (named("web:dear", TWO), "Wrong", "/price/tea"),
    ],
    "05-target": [
        (nothing, "NotYet", WORKSHOP),
        (named("web:multistage", WORKSHOP), "Wrong", "first"),
        (base("python:3.13", WORKSHOP), "Wrong", "/src/shop"),
        (on_top("web:stage", "RUN rm -rf /opt/venv/lib", WORKSHOP), "Wrong", "/opt/venv"),
    ],
    "05-mine": [
        (nothing, "NotYet", MINE),
        (named("web:multistage", MINE), "Wrong", "MB"),
        (on_top("web:minimal", SAYS_HELLO, MINE), "Wrong", "run"),
        (on_top("web:minimal", f"COPY file {SITE}/shop/app.py", MINE), "Wrong", "run"),
    ],
}


class TestExercises(Tried):
    chapters = ("04", "05")
