"""The exercises of chapters 04 and 05, which look inside images: right ways and wrong states.

The images are built once, and kept under names of their own. Each test gives them, or small
changes of them, the names that an exercise asks for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from desk import Desk, Steps, Tried, empty

from labapp.bench import Bench
from labapp.exercises import evidence, find_exercise, inside
from labapp.workspace import copy_application, copy_dockerfile

PACKAGES = "/opt/venv/lib/python3.13/site-packages"
REPOSITORIES = ("shop/web", "shop/workshop", "team/python")
"""Where learners push in these chapters."""


@pytest.fixture(scope="module")
def shelf(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """The shop in its variants, and a stale base, in the registry as ``kept/…``."""
    empty(bench)
    desk = Desk(replace(bench, work=tmp_path_factory.mktemp("shop")))
    app = copy_application(desk.bench)
    for name in ("full", "slim", "multistage", "minimal"):
        copy_dockerfile(desk.bench, name, app / "Dockerfile")
        desk.pushed_from(app, f"kept/web:{name}")
    copy_dockerfile(desk.bench, "multistage", app / "Dockerfile")
    desk.pushed_from(app, "kept/web:stage", target="build")
    source = app / "shop" / "app.py"
    source.write_text(source.read_text().replace('"tea": 190', '"tea": 19000'))
    desk.pushed_from(app, "kept/web:dear")
    stale = desk.work / "stale"
    stale.mkdir()
    copy_dockerfile(desk.bench, "stale", stale / "Dockerfile")
    desk.pushed_from(stale, "kept/python:old")
    return desk


@pytest.fixture
def desk(shelf: Desk, tmp_path: Path) -> Desk:
    """A registry as the chapters leave it before the exercises."""
    registry = shelf.bench.registry
    for repository in set(REPOSITORIES) & set(registry.repositories()):
        digests = {registry.resolve(repository, tag) for tag in registry.tags(repository)}
        for digest in digests:
            registry.delete_manifest(repository, digest)
    desk = Desk(replace(shelf.bench, work=tmp_path))
    for name in ("full", "slim"):
        desk.copy(f"kept/web:{name}", f"shop/web:{name}")
    desk.copy("kept/python:old", "team/python:old")
    return desk


def emptied(desk: Desk, tag: str) -> None:
    """Take one image away again."""
    registry = desk.bench.registry
    registry.delete_manifest("shop/web", registry.resolve("shop/web", tag))


def on_top(base: str, lines: str, short: str) -> Steps:
    """Build an image from another one and some instructions, and push it."""

    def steps(desk: Desk) -> None:
        folder = desk.work / "top"
        folder.mkdir()
        (folder / "Dockerfile").write_text(f"FROM {desk.name(base)}\n{lines}\n")
        desk.pushed_from(folder, short)

    return steps


def named(kept: str, short: str) -> Steps:
    """Give an image that is there the name that the exercise asks for."""
    return lambda desk: desk.copy(kept, short)


def fresh_base(desk: Desk) -> str:
    return str(desk.bench.base("python:3.13-slim"))


def full_base(desk: Desk) -> str:
    return str(desk.bench.base("python:3.13"))


# ---------------------------------------------------------------- chapter 04


def packages(desk: Desk) -> list[str]:
    """The Debian packages of the full image, largest first, without the compiler's."""
    held = evidence.image(desk.bench, "shop/web", "full")
    assert held is not None
    rows = inside.contents(desk.bench, held).packages
    rows = rows[(rows["kind"] == "deb") & ~rows["source"].isin(["gcc-14"])].sort_values(
        "unpacked_bytes", ascending=False
    )
    return list(rows["name"])


def unused(desk: Desk) -> str:
    """The largest passenger, found by what each process of the shop maps."""
    shop = desk.bench.engine.client.containers.run(
        desk.name("shop/web:full"), detach=True, labels=desk.bench.state.labels
    )
    try:
        maps = shop.exec_run(["sh", "-c", "sleep 1; cat /proc/[0-9]*/maps"]).output.decode()
    finally:
        shop.remove(force=True)
    held = evidence.image(desk.bench, "shop/web", "full")
    assert held is not None
    files = inside.contents(desk.bench, held).files
    paths = {line.split()[-1] for line in maps.splitlines() if "/" in line}
    used = set(files[files["path"].isin(paths)]["package"])
    return next(name for name in packages(desk) if name not in used)


def cves(desk: Desk, tag: str, *, headers: bool = False) -> set[str]:
    held = evidence.image(desk.bench, "shop/web", tag)
    assert held is not None
    rows = inside.report(desk.bench, held).rows
    running = set(rows[~rows["headers"]]["cve"])
    return set(rows["cve"]) - running if headers else running


def only_full(desk: Desk) -> list[str]:
    return sorted(cves(desk, "full") - cves(desk, "slim"))


def upgraded(desk: Desk) -> None:
    """The other way: the old image, and an upgrade on top."""
    on_top("team/python:old", "RUN apt-get update && apt-get upgrade -y", "team/python:patched")(
        desk
    )


def squeezed(desk: Desk) -> None:
    """One stage, with the compiler coming and going inside of one RUN: the chapter's solution."""
    app = copy_application(desk.bench)
    names = {"app": app, "lab": Builder(desk), "web": desk.name("shop/web")}
    exec(find_exercise("04-small").solution, names)


class Builder:
    """What a solution needs of the notebook's ``lab``."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def build(self, folder: Path, *, tag: str) -> None:
        self._desk.build(folder, tag.partition("/")[2])

    def push(self, reference: str) -> None:
        self._desk.push(reference.partition("/")[2])


# ---------------------------------------------------------------- both


RIGHT: list[tuple[str, Steps]] = [
    ("04-unused", unused),
    ("04-unused", lambda desk: f" {unused(desk)}:amd64"),
    ("04-cve", lambda desk: only_full(desk)[0]),
    ("04-cve", lambda desk: only_full(desk)[-1].lower()),
    ("04-small", squeezed),
    ("04-small", named("kept/web:multistage", "shop/web:small")),
    ("04-patch", lambda desk: desk.copy(fresh_base(desk), "team/python:patched")),
    ("04-patch", upgraded),
    ("05-two", named("kept/web:multistage", "shop/web:two")),
    ("05-two", named("kept/web:minimal", "shop/web:two")),
    ("05-target", named("kept/web:stage", "shop/workshop:1")),
    ("05-target", on_top("kept/web:stage", "RUN gcc --version", "shop/workshop:1")),
    ("05-mine", named("kept/web:minimal", "shop/web:mine")),
    ("05-mine", on_top("kept/web:minimal", "ENV MINE=1", "shop/web:mine")),
]

WRONG: list[tuple[str, Steps, str, str]] = [
    ("04-unused", lambda desk: ..., "NotYet", "No answer yet"),
    ("04-unused", lambda desk: emptied(desk, "full") or "git", "NotYet", "Run the cells above"),
    ("04-unused", lambda desk: 7, "Wrong", "type int"),
    ("04-unused", lambda desk: "no-such-package", "Wrong", "no Debian package"),
    ("04-unused", lambda desk: "libc6", "Wrong", "in memory"),
    ("04-unused", lambda desk: "gcc-14-x86-64-linux-gnu", "Wrong", "the compiler's source"),
    ("04-unused", lambda desk: packages(desk)[-1], "Wrong", "are larger"),
    ("04-cve", lambda desk: ..., "NotYet", "No answer yet"),
    ("04-cve", lambda desk: emptied(desk, "slim") or "CVE-2025-1", "NotYet", "is missing"),
    ("04-cve", lambda desk: ["CVE-2025-12345"], "Wrong", "is no CVE number"),
    ("04-cve", lambda desk: "CVE-1999-0001", "Wrong", "was not fixed"),
    ("04-cve", lambda desk: min(cves(desk, "slim")), "Wrong", "concerns 'slim', too"),
    ("04-cve", lambda desk: min(cves(desk, "full", headers=True)), "Wrong", "never run"),
    ("04-small", lambda desk: None, "NotYet", "no 'shop/web:small' yet"),
    ("04-small", named("kept/web:slim", "shop/web:small"), "Wrong", "the limit is"),
    (
        "04-small",
        on_top("kept/web:slim", "USER 0\nRUN rm -rf /usr/lib/gcc /usr/libexec", "shop/web:small"),
        "Wrong",
        "the limit is",
    ),
    ("04-small", named("kept/web:dear", "shop/web:small"), "Wrong", "not what the shop answers"),
    (
        "04-small",
        lambda desk: desk.copy(fresh_base(desk), "shop/web:small"),
        "Wrong",
        "does not run",
    ),
    ("04-patch", lambda desk: None, "NotYet", "no 'team/python:patched' yet"),
    ("04-patch", named("kept/python:old", "team/python:patched"), "Wrong", "still lacks"),
    (
        "04-patch",
        on_top("team/python:old", "RUN rm -rf /var/lib/dpkg/status", "team/python:patched"),
        "Wrong",
        "not a patch",
    ),
    (
        "04-patch",
        lambda desk: on_top_of(desk, fresh_base(desk), "RUN rm /usr/bin/python3*"),
        "Wrong",
        "doesn't run",
    ),
    ("05-two", lambda desk: None, "NotYet", "no 'shop/web:two' yet"),
    ("05-two", named("kept/web:slim", "shop/web:two"), "Wrong", "still has a compiler"),
    (
        "05-two",
        on_top("kept/web:slim", "USER 0\nRUN rm -rf /usr/bin/*gcc* /usr/libexec", "shop/web:two"),
        "Wrong",
        "still has a compiler",
    ),
    ("05-two", named("kept/web:dear", "shop/web:two"), "Wrong", "not what the shop answers"),
    ("05-target", lambda desk: None, "NotYet", "no 'shop/workshop:1' yet"),
    ("05-target", named("kept/web:multistage", "shop/workshop:1"), "Wrong", "the first is wanted"),
    (
        "05-target",
        lambda desk: desk.copy(full_base(desk), "shop/workshop:1"),
        "Wrong",
        "no source",
    ),
    (
        "05-target",
        on_top("kept/web:stage", "RUN rm -rf /opt/venv/lib", "shop/workshop:1"),
        "Wrong",
        "was not built",
    ),
    ("05-mine", lambda desk: None, "NotYet", "no 'shop/web:mine' yet"),
    ("05-mine", named("kept/web:multistage", "shop/web:mine"), "Wrong", "the limit is"),
    (
        "05-mine",
        on_top("kept/web:minimal", """CMD ["python3", "-c", "print('hello')"]""", "shop/web:mine"),
        "Wrong",
        "does not run",
    ),
    (
        "05-mine",
        on_top("kept/web:minimal", f"COPY Dockerfile {PACKAGES}/shop/app.py", "shop/web:mine"),
        "Wrong",
        "does not run",
    ),
]  # fmt: skip


def on_top_of(desk: Desk, base: str, lines: str) -> None:
    """As ``on_top``, from a base image by its whole reference."""
    folder = desk.work / "top"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {base}\n{lines}\n")
    desk.pushed_from(folder, "team/python:patched")


class TestExercises(Tried):
    chapters = ("04", "05")
