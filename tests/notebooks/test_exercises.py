"""The exercises of chapters 00 to 03: right ways that pass, and wrong states that don't."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from desk import (
    INSTALL,
    NAIVE,
    Desk,
    States,
    Steps,
    Tried,
    all_of,
    made,
    nothing,
    step,
    verdict,
    write,
)
from made_images import OCI, Files

from labapp.machine.ports import ask, wait_until
from labapp.registry.manifests import DOCKER_MANIFEST, Manifest, digest_of


@pytest.fixture(scope="module")
def shelf(bare: Desk) -> Desk:
    """Pages on the slim base; the third one stands on the first."""
    for text in ("one", "two"):
        bare.pushed(f"kept/page:{text}", text=text)
    bare.noted("kept/page:noted", text="noted")
    bare.built(f"FROM {bare.name('kept/page:one')}\nENV PAGE=1\n", "kept/page:three")
    return bare


@step
def gives(desk: Desk, *names: str, then: Steps = nothing) -> object:
    """Give kept pages the names that a chapter's cells push; ``one=hello/web:1.0`` is a pair."""
    for pair in names:
        kept, _, short = pair.partition("=")
        desk.copy(f"kept/page:{kept}", short)
    return then(desk)


@step
def local(desk: Desk, kept: str, short: str) -> None:
    """Give a kept page another name on the engine only."""
    desk.tag(f"kept/page:{kept}", short)


# ---------------------------------------------------------------- chapter 00

HELLO = "one=hello/web:1.0"
MINE = (HELLO, "one=hello/web:mine")
PORT = {"8000/tcp": ("127.0.0.1", None)}


@step
def retagged(desk: Desk, old: str, new: str) -> None:
    """Pull, tag and push in a terminal; the engine may keep of an index what is for it."""
    old, new = desk.name(old), desk.name(new)
    for words in (("pull", old), ("tag", old, new), ("push", new)):
        done = desk.docker(*words)
        assert done.returncode == 0, done.stderr


def tag_by_sdk(desk: Desk) -> None:
    client = desk.bench.engine.client
    client.images.get(desk.name("kept/page:one")).tag(desk.name("hello/web"), "mine")
    list(client.api.push(desk.name("hello/web"), tag="mine", stream=True))


@step
def runs(desk: Desk, short: str = "hello/web:mine", **options: object) -> None:
    """Run a container by the SDK, and wait until its service listens."""
    container = desk.run(short, **options)
    probe = "import socket; socket.create_connection(('127.0.0.1', 8000))"
    wait_until(lambda: container.exec_run(["python3", "-c", probe]).exit_code == 0, seconds=20)


def run_by_digest(desk: Desk) -> None:
    runs(f"hello/web@{desk.digest('hello/web:mine')}", ports=PORT)(desk)


def run_ended(desk: Desk) -> None:
    desk.run("hello/web:mine", ["python3", "-c", "raise SystemExit(3)"]).wait()


# ---------------------------------------------------------------- chapter 01

REQUIRE = "RUN pip --python /opt/venv install -r requirements.txt\n"


def shop(*lines: str) -> str:
    """Write other lines between the environment and the command."""
    head, _, rest = NAIVE.partition("COPY . .\n")
    return "".join([head, *lines, rest.partition(INSTALL)[2]])


FILES = "COPY wheels wheels\nCOPY requirements.txt .\n"
ORDERED = shop(FILES, REQUIRE, "COPY . .\n", INSTALL)
BY_THE_DOCS = shop(
    "COPY requirements.txt ./\nCOPY wheels ./wheels/\n",
    REQUIRE,
    "COPY pyproject.toml ./\nCOPY shop ./shop/\n",
    INSTALL,
)
ELSEWHERE = ORDERED.replace("txt .\n", "txt /tmp/wanted\n").replace(
    "-r requirements.txt", "-r /tmp/wanted"
)
BY_ARGUMENT = (
    ORDERED.replace("COPY wheels", "ARG WANTED=requirements.txt\nCOPY wheels")
    .replace("-r requirements.txt", "-r $WANTED")
    .replace("\n", "\r\n")
)
PRETENDED = shop("RUN : install requirements.txt\nCOPY . .\n", REQUIRE, INSTALL)


@step
def cached(desk: Desk, text: str, *, build: bool = True, then: str | None = "") -> None:
    """Write a Dockerfile and build it; ``then`` replaces it afterwards, None removes it."""
    folder = desk.shop(text)
    if build:
        desk.build(folder, "shop/web:cached")
    if then is None:
        (folder / "Dockerfile").unlink()
    elif then:
        (folder / "Dockerfile").write_text(then)


def in_a_block(desk: Desk) -> None:
    """In a here-document, where the builder knows any."""
    block = REQUIRE.replace("RUN ", "RUN <<EOF\n") + "EOF\n"
    can = desk.bench.engine.builder != "classic"
    cached(ORDERED.replace(REQUIRE, block) if can else ORDERED)(desk)


def beside(desk: Desk) -> None:
    """What stays out is said beside the Dockerfile, where the builder looks there."""
    context(IGNORED)(desk)
    if desk.bench.engine.builder != "classic":
        app = desk.work / "app"
        (app / ".dockerignore").rename(app / "own.Dockerfile.dockerignore")


def checked_twice(desk: Desk) -> None:
    """What the first check built is not taken for what the learner's cache has."""
    cached(NAIVE)(desk)
    assert verdict("01-cache", desk.bench)[0] == "Wrong"


BOTH = {"src/secrets.env": "PASSWORD=x", "src/backup.sql": "x"}
SOURCE = {"src/shop/app.py": "app"}
IGNORED = "*.env\n*.sql\n"


@step
def context(
    desk: Desk, ignore: str | None, *, image: Files | None = SOURCE, keep: bool = True
) -> None:
    """Write what stays out of the context, and store an image as it would be built."""
    folder = Path(shutil.copytree(desk.bench.application, desk.work / "app"))
    (folder / "Dockerfile").write_text(NAIVE)
    (folder / ".dockerignore").unlink()
    if keep:
        (folder / "secrets.env").write_text("PASSWORD=x\n")
        (folder / "backup.sql").write_bytes(b"x" * 100_000)
    if ignore is not None:
        (folder / ".dockerignore").write_text(ignore, encoding="utf-8")
    if image is not None:
        desk.store("shop/web:clean", image)


# ---------------------------------------------------------------- chapter 02

VERSIONS = ("one=shop/web:1.0", "two=shop/web:1.1")
sent = functools.partial(gives, *VERSIONS)


def manifest(desk: Desk, tag: str) -> Manifest:
    return desk.lab.manifest(desk.name(f"shop/web:{tag}"))


def layers(desk: Desk, tag: str) -> list[str]:
    return [layer.digest for layer in manifest(desk, tag).layers]


def new_layers(desk: Desk) -> list[str]:
    return [d for d in layers(desk, "1.1") if d not in layers(desk, "1.0")]


def over_http(desk: Desk) -> tuple[str, ...]:
    found = []
    for tag in ("1.0", "1.1"):
        url = f"http://{desk.bench.registry.address}/v2/shop/web/manifests/{tag}"
        answer = ask(
            url, seconds=10, headers={"Accept": f"{OCI}.manifest.v1+json, {DOCKER_MANIFEST}"}
        )
        found.append([layer["digest"] for layer in answer.json()["layers"]])
    return tuple(each for each in found[1] if each not in found[0])


def promoted(desk: Desk) -> None:
    desk.tag("kept/page:two", "prod/web:1.1")
    desk.push("prod/web:1.1")


# ---------------------------------------------------------------- chapter 03

TESTED = ("one=shop/web:1.4-tested", "two=shop/web:1.4")
NOTED = ("noted=shop/web:1.4-tested", "two=shop/web:1.4")
computed = functools.partial(gives, *TESTED)


def raw(desk: Desk) -> bytes:
    return manifest(desk, "1.4-tested").raw


def pin(desk: Desk, tag: str = "1.4-tested") -> str:
    return str(desk.lab.pin(desk.name(f"shop/web:{tag}")))


def by_manifest(desk: Desk) -> str:
    return f"{desk.name('shop/web')}@{manifest(desk, '1.4-tested').digest}"


def by_image_id(desk: Desk) -> str:
    return f"{desk.name('shop/web')}@{manifest(desk, '1.4-tested').config.digest}"


@step
def production(
    desk: Desk, image: Callable[[Desk], str], *names: str, deployed: str = "production.yaml"
) -> None:
    """Write the file, and deploy it or another one of the same content; empty for none."""
    gives(*(names or TESTED))(desk)
    text = f'services:\n  web:\n    image: {image(desk)}\n    ports: ["127.0.0.1::8000"]\n'
    write(desk.work / "production.yaml", text)
    if deployed:
        write(desk.work / deployed, text)
        desk.lab.deploy(desk.work / deployed)


def pinned_then_other_deployed(desk: Desk) -> None:
    production(lambda d: pin(d, "1.4"))(desk)
    file = desk.work / "production.yaml"
    file.write_text(file.read_text().replace(pin(desk, "1.4"), pin(desk)))


def pinned_by_terminal(desk: Desk) -> None:
    """The file pinned in an editor, and the server started by a plain `docker run`."""
    production(pin, deployed="")(desk)
    desk.run(pin(desk).partition("/")[2], ports={"8000/tcp": None})


BASE = "one=team/base:1"


@step
def page(desk: Desk, text: str, *names: str, base: str = BASE) -> None:
    """Write the page's Dockerfile; ``BASE`` is the repository, ``GOOD`` the base's digest.

    ``CHILD`` is the manifest's where ``GOOD`` is that of an index.
    """
    gives(base, *names)(desk)
    file, name = desk.work / "page" / "Dockerfile", desk.name("team/base")
    held = desk.bench.registry.image(f"{name}:1")
    meant = {
        "PLATFORM": desk.lab.platform,
        "SLIM": desk.slim,
        "GOOD": held.digest,
        "CHILD": held.manifest.digest,
    }
    write(file, f"# The base\n{text}\nENV PAGE=1\n", **meant, BASE=name)


def page_typed(desk: Desk) -> None:
    desk.typed(desk.work / "page", "page/web:pinned")


PAGE_THERE = "three=page/web:pinned"

STATES: States = {
    "00-tag": [
        gives(HELLO, then=tag_by_sdk),
        gives("noted=hello/web:1.0", then=retagged("hello/web:1.0", "hello/web:mine")),
        gives(*MINE),
        gives(HELLO, then=retagged("hello/web:1.0", "hello/web:mine")),
        (nothing, "NotYet", "hello/web:1.0"),
        (gives(HELLO), "NotYet"),
        (gives(HELLO, then=local("one", "hello/web:mine")), "Wrong"),
        (gives(HELLO, "two=hello/web:mine"), "Wrong"),
        (gives(HELLO, "one=hello/page:mine"), "Wrong", "hello/page"),
        (gives(HELLO, "two=shop/web:mine"), "NotYet"),
        (gives(HELLO, "one=hello/web:Mine"), "NotYet", "Mine"),
    ],
    "00-run": [
        gives(*MINE, then=runs(ports=PORT)),
        gives(*MINE, then=run_by_digest),
        gives("noted=hello/web:mine", then=run_by_digest),
        gives(*MINE, then=lambda desk: desk.lab.run(desk.name("hello/web:mine"), wait_for="/")),
        (gives(*MINE), "NotYet"),
        (gives(*MINE, then=runs("hello/web:1.0")), "NotYet", "hello/web:1.0"),
        (gives(*MINE, then=runs()), "Wrong", "8000"),
        (gives(*MINE, then=runs(ports={"8080/tcp": ("127.0.0.1", None)})), "Wrong", "8000"),
        (gives(*MINE, then=run_ended), "Wrong", "code 3"),
    ],
    "01-cache": [
        in_a_block,
        cached(BY_THE_DOCS),
        cached(ELSEWHERE),
        cached(BY_ARGUMENT),
        (cached(ORDERED, build=False), "NotYet"),
        (cached(PRETENDED), "Wrong"),
        (checked_twice, "Wrong"),
        (cached(ORDERED, then=None), "Wrong", "Dockerfile"),
        (cached(ORDERED, then=shop("COPY whels wheels\n", INSTALL)), "Wrong", "whels"),
        (cached(shop(FILES, "COPY . .\n", INSTALL)), "Wrong", "requirements.txt"),
        (cached(shop(FILES, REQUIRE)), "Wrong", "shop"),
        (cached(ORDERED.replace(INSTALL, f"RUN sed -i /^#/d shop/app.py\n{INSTALL}")), "Wrong"),
    ],
    "01-context": [
        all_of(context(IGNORED, image=None), made("app", "shop/web:clean")),
        context("# not these\n*.sql\n**/*.env\n"),
        context("\ufeffsecrets.env\r\nbackup.sql\r\n"),
        context("*\n!shop\n!wheels\n!requirements.txt\n!pyproject.toml\n"),
        beside,
        (context("#*.env\n#*.sql\n"), "Wrong", "backup.sql"),
        (context("secrets.env\n", image=None), "NotYet"),
        (all_of(context(IGNORED, image=None), local("one", "shop/web:clean")), "Wrong", "push"),
        (context(None, image=SOURCE | BOTH), "Wrong", "backup.sql"),
        (context("backup.sql\n", image=SOURCE | {"src/secrets.env": "x"}), "Wrong", "secrets.env"),
        (context(None, keep=False), "Wrong"),
        (context(None), "Wrong", "backup.sql"),
        (context(IGNORED, image={"src/page": "1"}), "Wrong"),
    ],
    "02-sent": [
        sent(then=new_layers),
        sent(then=lambda desk: set(new_layers(desk))),
        sent(then=over_http),
        gives("one=shop/web:1.0", "noted=shop/web:1.1", then=new_layers),
        (sent(then=lambda desk: ...), "NotYet"),
        (lambda desk: ["sha256:"], "NotYet", "shop/web:1.0"),
        (gives("one=shop/web:1.0", "one=shop/web:1.1", then=lambda desk: []), "NotYet", "1.1"),
        (sent(then=lambda desk: 3), "Wrong", "int"),
        (sent(then=lambda desk: layers(desk, "1.1")), "Wrong", "1.0"),
        (sent(then=lambda desk: [desk.digest("shop/web:1.1")]), "Wrong", "manifest"),
        (sent(then=lambda desk: [d[:19] for d in new_layers(desk)]), "Wrong", "sha256:"),
        (sent(then=lambda desk: []), "Wrong", " 0 "),
    ],
    "02-promote": [
        gives(*VERSIONS, then=promoted),
        gives(*VERSIONS, "two=prod/web:1.1"),
        gives("noted=shop/web:1.1", then=retagged("shop/web:1.1", "prod/web:1.1")),
        gives("noted=shop/web:1.1", "noted=prod/web:1.1"),
        (nothing, "NotYet", "shop/web:1.1"),
        (gives(*VERSIONS), "NotYet", "prod/web:1.1"),
        (gives(*VERSIONS, then=local("two", "prod/web:1.1")), "Wrong", "push"),
        (gives(*VERSIONS, "one=prod/web:1.1"), "Wrong"),
        (gives(*VERSIONS, "two=prod/web:latest"), "Wrong", "latest"),
        (gives(*VERSIONS, "three=prod/web:1.1"), "Wrong"),
    ],
    "03-digest": [
        computed(then=lambda desk: digest_of(raw(desk))),
        computed(then=lambda desk: pin(desk).split("@")[1]),
        gives(*NOTED, then=lambda desk: digest_of(raw(desk))),
        gives(*NOTED, then=lambda desk: desk.digest("shop/web:1.4-tested")),
        (computed(then=lambda desk: ...), "NotYet"),
        (lambda desk: "sha256:0", "NotYet", "1.4-tested"),
        (computed(then=raw), "Wrong", "bytes"),
        (computed(then=lambda desk: digest_of(raw(desk))[7:]), "Wrong"),
        (computed(then=lambda desk: manifest(desk, "1.4-tested").config.digest), "Wrong", "config"),
        (computed(then=lambda desk: pin(desk, "1.4").split("@")[1]), "Wrong", "'1.4'"),
        (computed(then=lambda desk: digest_of(raw(desk) + b"\n")), "Wrong"),
        (computed(then=lambda desk: "shop/web:1.4"), "Wrong", "shop/web:1.4"),
    ],
    "03-pin": [
        production(pin),
        pinned_by_terminal,
        production(pin, *NOTED),
        production(by_manifest, *NOTED),
        (nothing, "NotYet"),
        (production(lambda desk: desk.name("shop/web:1.4-tested")), "NotYet", "1.4-tested"),
        (production(lambda desk: pin(desk, "1.4")), "Wrong", "'1.4'"),
        (production(by_image_id, deployed=""), "Wrong", "image ID"),
        (production(by_image_id, *NOTED, deployed=""), "Wrong", "image ID"),
        (production(pin, deployed=""), "Wrong"),
        (production(pin, deployed="deployment.yaml"), "Wrong"),
        (pinned_then_other_deployed, "Wrong"),
        (production(lambda d: pin(d)[:-4], deployed=""), "Wrong", "production.yaml"),
    ],
    "03-from": [
        all_of(page("FROM BASE@GOOD"), made("page", "page/web:pinned")),
        page("FROM BASE:1@GOOD", PAGE_THERE),
        page("ARG FIRST=BASE@GOOD\nFROM ${FIRST}", PAGE_THERE),
        page("FROM SLIM AS tools\nFROM BASE@GOOD", PAGE_THERE),
        page("from --platform=PLATFORM BASE:1@GOOD as page\r", PAGE_THERE),
        all_of(page("FROM BASE:1@GOOD", base="noted=team/base:1"), page_typed),
        all_of(page("FROM BASE@CHILD", base="noted=team/base:1"), page_typed),
        (nothing, "NotYet"),
        (page("FROM BASE:1", PAGE_THERE), "NotYet", "team/base:1"),
        (page("FROM BASE@GOOD AS x\nFROM BASE:1", PAGE_THERE), "Wrong", "team/base:1"),
        (page("FROM BASE@GOOD AS x\nFROM SLIM", PAGE_THERE), "Wrong", "last stage"),
        (page("FROM BASE@GOOD\nRUN false", PAGE_THERE), "Wrong", "page/Dockerfile"),
        (page("FROM BASE@GOOD"), "Wrong"),
        (all_of(page("FROM BASE@GOOD"), local("three", "page/web:pinned")), "Wrong"),
        (page("FROM BASE@GOOD", "two=page/web:pinned"), "Wrong"),
        (page("FROM BASE@GOOD", "one=page/web:pinned"), "Wrong"),
        (page("FROM SLIM", PAGE_THERE), "Wrong", "base/python"),
        (page("# FROM BASE@GOOD", PAGE_THERE), "Wrong"),
    ],
}


class TestExercises(Tried):
    chapters = ("00", "01", "02", "03")
