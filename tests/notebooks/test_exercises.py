"""Every exercise: right ways that pass, and wrong states that don't, each with its words."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from desk import QUIET, Desk, Steps, Tried

from labapp import images, pins
from labapp.bench import Bench
from labapp.errors import ExerciseError
from labapp.exercises import find_exercise


@pytest.fixture
def desk(bench: Bench, tmp_path: Path, emptied: Callable[[], None]) -> Desk:
    emptied()
    return Desk(replace(bench, work=tmp_path))


# ---------------------------------------------------------------- chapter 00


def hello(desk: Desk) -> None:
    desk.pushed("hello/web:1.0")


def tag_by_sdk(desk: Desk) -> None:
    hello(desk)
    client = desk.bench.engine.client
    client.images.get(desk.name("hello/web:1.0")).tag(desk.name("hello/web"), "mine")
    list(client.api.push(desk.name("hello/web"), tag="mine", stream=True))


def tag_by_http(desk: Desk) -> None:
    hello(desk)
    held = desk.bench.registry.image(desk.name("hello/web:1.0")).manifest
    desk.bench.registry.put_manifest("hello/web", "mine", held.raw, held.media_type)


def tag_only_local(desk: Desk) -> None:
    hello(desk)
    desk.tag("hello/web:1.0", "hello/web:mine")


def tag_of_another_image(desk: Desk) -> None:
    hello(desk)
    desk.pushed("hello/web:mine", text="another")


def tag_in_another_repository(desk: Desk) -> None:
    hello(desk)
    desk.tag("hello/web:1.0", "hello/page:mine")
    desk.push("hello/page:mine")


def tag_of_another_chapter(desk: Desk) -> None:
    hello(desk)
    desk.pushed("shop/web:mine", text="another")


def tag_misspelt(desk: Desk) -> None:
    hello(desk)
    desk.tag("hello/web:1.0", "hello/web:Mine")
    desk.push("hello/web:Mine")


def mine(desk: Desk, **made: str) -> None:
    desk.pushed("hello/web:1.0", **made)
    desk.tag("hello/web:1.0", "hello/web:mine")
    desk.push("hello/web:mine")


def run_by_sdk(desk: Desk) -> None:
    mine(desk)
    desk.run("hello/web:mine", ports={"8000/tcp": ("127.0.0.1", None)})
    wait()


def run_by_lab(desk: Desk) -> None:
    mine(desk)
    images.run(
        desk.bench.engine,
        desk.name("hello/web:mine"),
        name=f"hello-{desk.bench.state.lab_id}",
        labels=desk.bench.state.labels,
        wait_for="/",
        feedback=QUIET,
    )


def run_of_the_other_tag(desk: Desk) -> None:
    mine(desk)
    desk.run("hello/web:1.0", ports={"8000/tcp": ("127.0.0.1", None)})


def run_without_port(desk: Desk) -> None:
    mine(desk)
    desk.run("hello/web:mine")


def run_with_wrong_port(desk: Desk) -> None:
    mine(desk)
    desk.run("hello/web:mine", ports={"8080/tcp": ("127.0.0.1", None)})
    wait()


def run_ended(desk: Desk) -> None:
    mine(desk)
    client = desk.bench.engine.client
    container = client.containers.create(
        desk.name("hello/web:mine"), ["python3", "-c", "raise SystemExit(3)"],
        labels=desk.bench.state.labels,
    )  # fmt: skip
    container.start()
    container.wait()


def wait() -> None:
    time.sleep(1.5)


# ---------------------------------------------------------------- chapter 01

FIRST = Path(__file__).parents[2] / "dockerfiles" / "first.Dockerfile"


def app(desk: Desk) -> Path:
    return Path(shutil.copytree(desk.bench.application, desk.work / "app"))


def naive() -> str:
    """The Dockerfile that the chapter starts from."""
    return FIRST.read_text("utf-8")


def ordered() -> str:
    text = naive()
    return text.replace("COPY . .\n", "COPY wheels wheels\nCOPY requirements.txt .\n").replace(
        "RUN pip --python /opt/venv install --no-deps .\n",
        "COPY . .\nRUN pip --python /opt/venv install --no-deps .\n",
    )


def cached(text: str, *, build: bool = True) -> Steps:
    def steps(desk: Desk) -> None:
        folder = app(desk)
        (folder / "Dockerfile").write_text(text)
        if build:
            desk.build(folder, "shop/web:cached")

    return steps


def cached_by_the_docs(desk: Desk) -> None:
    """The other way: copy the requirements and wheels in one line, and only shop/ at the end."""
    cached(
        naive()
        .replace("COPY . .\n", "COPY requirements.txt ./\nCOPY wheels ./wheels/\n")
        .replace(
            "RUN pip --python /opt/venv install --no-deps .\n",
            "COPY pyproject.toml ./\nCOPY shop ./shop/\n"
            "RUN pip --python /opt/venv install --no-deps .\n",
        )
    )(desk)


def cached_and_gone(desk: Desk) -> None:
    cached(ordered())(desk)
    (desk.work / "app" / "Dockerfile").unlink()


def cached_then_broken(desk: Desk) -> None:
    cached(ordered())(desk)
    (desk.work / "app" / "Dockerfile").write_text(ordered().replace("COPY wheels", "COPY whels"))


LIGHT = "ARG BASE=python:3.13-slim\nFROM ${BASE}\nWORKDIR /src\nCOPY . .\n"
"""What is sent and what is copied doesn't depend on what is built of it."""


def context(
    *, ignore: str | None, keep: bool = True, push: bool = True, short: str = "shop/web:clean",
    text: str | None = None,
) -> Steps:  # fmt: skip
    def steps(desk: Desk) -> None:
        folder = app(desk)
        (folder / ".dockerignore").unlink()
        (folder / "secrets.env").write_text("PASSWORD=x\n")
        (folder / "backup.sql").write_bytes(b"x" * 100_000)
        (folder / "Dockerfile").write_text(text or LIGHT)
        if ignore is not None:
            (folder / ".dockerignore").write_text(ignore)
        if not keep:
            (folder / "secrets.env").unlink()
            (folder / "backup.sql").unlink()
        desk.build(folder, short)
        if push:
            desk.push(short)

    return steps


# ---------------------------------------------------------------- chapter 02


def versions(desk: Desk) -> None:
    desk.pushed("shop/web:1.0", text="one")
    desk.pushed("shop/web:1.1", text="two")


def layers(desk: Desk, tag: str) -> list[str]:
    held = desk.bench.registry.image(desk.name(f"shop/web:{tag}"))
    return [layer.digest for layer in held.manifest.layers]


def sent(choose: Callable[[Desk], object]) -> Steps:
    def steps(desk: Desk) -> object:
        versions(desk)
        return choose(desk)

    return steps


def new_layers(desk: Desk) -> list[str]:
    return [d for d in layers(desk, "1.1") if d not in layers(desk, "1.0")]


def promoted(desk: Desk) -> None:
    versions(desk)
    desk.tag("shop/web:1.1", "prod/web:1.1")
    desk.push("prod/web:1.1")


def promoted_by_http(desk: Desk) -> None:
    versions(desk)
    registry = desk.bench.registry
    held = registry.image(desk.name("shop/web:1.1")).manifest
    for blob in (held.config, *held.layers):
        assert registry.mount_blob("prod/web", blob.digest, "shop/web")
    registry.put_manifest("prod/web", "1.1", held.raw, held.media_type)


def promoted_locally(desk: Desk) -> None:
    versions(desk)
    desk.tag("shop/web:1.1", "prod/web:1.1")


def promoted_the_old(desk: Desk) -> None:
    versions(desk)
    desk.tag("shop/web:1.0", "prod/web:1.1")
    desk.push("prod/web:1.1")


def promoted_under_another_tag(desk: Desk) -> None:
    versions(desk)
    desk.tag("shop/web:1.1", "prod/web:latest")
    desk.push("prod/web:latest")


def promoted_by_building_again(desk: Desk) -> None:
    versions(desk)
    desk.pushed("prod/web:1.1", text="two and a bit")


# ---------------------------------------------------------------- chapter 03


def tested(desk: Desk) -> None:
    desk.pushed("shop/web:1.4-tested", text="tested")
    desk.pushed("shop/web:1.4", text="untested")


def computed(choose: Callable[[Desk], object]) -> Steps:
    def steps(desk: Desk) -> object:
        tested(desk)
        return choose(desk)

    return steps


def raw(desk: Desk) -> bytes:
    return desk.bench.registry.image(desk.name("shop/web:1.4-tested")).manifest.raw


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def config_digest(desk: Desk) -> str:
    return desk.bench.registry.image(desk.name("shop/web:1.4-tested")).manifest.config.digest


def production(image: Callable[[Desk], str], *, deploy: bool = True) -> Steps:
    def steps(desk: Desk) -> None:
        tested(desk)
        file = desk.work / "production.yaml"
        file.write_text(
            f'services:\n  web:\n    image: {image(desk)}\n    ports: ["127.0.0.1::8000"]\n'
        )
        if deploy:
            desk.deploy(file)

    return steps


def digest_of(desk: Desk, tag: str) -> str:
    return str(pins.pin(desk.bench.registry, desk.name(f"shop/web:{tag}")))


def pinned_then_other_deployed(desk: Desk) -> None:
    production(lambda d: digest_of(d, "1.4"))(desk)
    file = desk.work / "production.yaml"
    file.write_text(file.read_text().replace(digest_of(desk, "1.4"), digest_of(desk, "1.4-tested")))


def pinned_by_terminal(desk: Desk) -> None:
    """The file pinned in an editor, and the server started by a plain `docker run`."""
    production(lambda d: digest_of(d, "1.4-tested"), deploy=False)(desk)
    pinned = digest_of(desk, "1.4-tested")
    desk.bench.engine.client.containers.run(
        pinned, detach=True, labels=desk.bench.state.labels, ports={"8000/tcp": None}
    )


def page(
    line: Callable[[Desk], str], *, build: bool = True, push: bool = True, before: str = ""
) -> Steps:
    def steps(desk: Desk) -> None:
        desk.pushed("team/base:1", text="first")
        if before:
            folder = desk.work / "page"
            folder.mkdir()
            desk.image("page/web:pinned", text=before)
            desk.push("page/web:pinned")
        folder = desk.work / "page"
        folder.mkdir(exist_ok=True)
        (folder / "Dockerfile").write_text(f"# The base\nFROM {line(desk)}\nENV PAGE=1\n")
        if build:
            desk.build(folder, "page/web:pinned")
            if push:
                desk.push("page/web:pinned")

    return steps


def base_pin(desk: Desk) -> str:
    return str(pins.pin(desk.bench.registry, desk.name("team/base:1")))


def base_pin_with_tag(desk: Desk) -> str:
    return base_pin(desk).replace("@", ":1@")


RIGHT: list[tuple[str, Steps]] = [
    ("00-tag", tag_by_sdk),
    ("00-tag", tag_by_http),
    ("00-run", run_by_sdk),
    ("00-run", run_by_lab),
    ("01-cache", cached(ordered())),
    ("01-cache", cached_by_the_docs),
    ("01-context", context(ignore="secrets.env\nbackup.sql\n", text=naive())),
    ("01-context", context(ignore="# not these\n*.sql\n**/*.env\n")),
    ("02-sent", sent(new_layers)),
    ("02-sent", sent(lambda desk: set(new_layers(desk)))),
    ("02-promote", promoted),
    ("02-promote", promoted_by_http),
    ("03-digest", computed(lambda desk: sha(raw(desk)))),
    ("03-digest", computed(lambda desk: digest_of(desk, "1.4-tested").split("@")[1])),
    ("03-pin", production(lambda desk: digest_of(desk, "1.4-tested"))),
    ("03-pin", pinned_by_terminal),
    ("03-from", page(base_pin)),
    ("03-from", page(base_pin_with_tag)),
]

WRONG: list[tuple[str, Steps, str, str]] = [
    ("00-tag", lambda desk: None, "NotYet", "no '"),
    ("00-tag", hello, "NotYet", "'mine' is missing"),
    ("00-tag", tag_only_local, "Wrong", "local until it is pushed"),
    ("00-tag", tag_of_another_image, "Wrong", "two different images"),
    ("00-tag", tag_in_another_repository, "Wrong", "hello/page"),
    ("00-tag", tag_of_another_chapter, "NotYet", "'mine' is missing"),
    ("00-tag", tag_misspelt, "NotYet", "Mine"),
    ("00-run", mine, "NotYet", "No container was started"),
    ("00-run", run_of_the_other_tag, "NotYet", "hello/web:1.0'. None was started"),
    ("00-run", run_without_port, "Wrong", "Publish its port 8000"),
    ("00-run", run_with_wrong_port, "Wrong", "nothing answers"),
    ("00-run", run_ended, "Wrong", "ended with code 3"),
    ("01-cache", cached(ordered(), build=False), "NotYet", "no image"),
    ("01-cache", cached(naive()), "Wrong", "COPY . ."),
    ("01-cache", cached_and_gone, "Wrong", "no 'Dockerfile'"),
    ("01-cache", cached_then_broken, "Wrong", "does not build"),
    (
        "01-cache",
        cached(ordered().replace("RUN pip --python /opt/venv install -r requirements.txt\n", "")),
        "Wrong",
        "No step of your Dockerfile installs",
    ),
    (
        "01-cache",
        cached(ordered().replace("COPY . .\nRUN pip --python /opt/venv install --no-deps .\n", "")),
        "Wrong",
        "does not start",
    ),
    ("01-context", context(ignore="secrets.env\n", short="shop/web:other"), "NotYet", "no 'shop"),
    ("01-context", context(ignore="*.env\n*.sql\n", push=False), "Wrong", "push it"),
    ("01-context", context(ignore=None), "Wrong", "backup.sql"),
    ("01-context", context(ignore="backup.sql\n"), "Wrong", "secrets.env"),
    ("01-context", context(ignore=None, keep=False), "Wrong", "must stay on"),
    (
        "01-context",
        context(ignore=None, text=LIGHT.replace("COPY . .", "COPY shop shop")),
        "Wrong",
        "still travels",
    ),
    ("02-sent", sent(lambda desk: ...), "NotYet", "No answer yet"),
    ("02-sent", lambda desk: ["sha256:"], "NotYet", "needs 'shop/web:1.0'"),
    ("02-sent", sent(lambda desk: 3), "Wrong", "type int"),
    ("02-sent", sent(lambda desk: layers(desk, "1.1")), "Wrong", "is in 1.0 as well"),
    (
        "02-sent",
        sent(lambda desk: [desk.bench.registry.resolve("shop/web", "1.1")]),
        "Wrong",
        "is the manifest",
    ),
    ("02-sent", sent(lambda desk: [d[:19] for d in new_layers(desk)]), "Wrong", "Whole digests"),
    ("02-sent", sent(lambda desk: []), "Wrong", "You named 0"),
    ("02-promote", lambda desk: None, "NotYet", "Run the cells above"),
    ("02-promote", versions, "NotYet", "no 'prod/web:1.1' yet"),
    ("02-promote", promoted_locally, "Wrong", "push it"),
    ("02-promote", promoted_the_old, "Wrong", "gives the same image a second name"),
    ("02-promote", promoted_under_another_tag, "Wrong", "latest"),
    ("02-promote", promoted_by_building_again, "Wrong", "built again"),
    ("03-digest", computed(lambda desk: ...), "NotYet", "No answer yet"),
    ("03-digest", lambda desk: "sha256:0", "NotYet", "Run the cells above"),
    ("03-digest", computed(raw), "Wrong", "type bytes"),
    ("03-digest", computed(lambda desk: sha(raw(desk))[7:]), "Wrong", "in front"),
    ("03-digest", computed(config_digest), "Wrong", "image ID"),
    (
        "03-digest",
        computed(lambda desk: digest_of(desk, "1.4").split("@")[1]),
        "Wrong",
        "names now",
    ),
    ("03-digest", computed(lambda desk: sha(raw(desk) + b"\n")), "Wrong", "as they came"),
    ("03-digest", computed(lambda desk: "shop/web:1.4"), "Wrong", "is no digest"),
    ("03-pin", lambda desk: None, "NotYet", "missing"),
    ("03-pin", production(lambda desk: desk.name("shop/web:1.4-tested")), "NotYet", "names a tag"),
    ("03-pin", production(lambda desk: digest_of(desk, "1.4")), "Wrong", "Nobody tested it"),
    (
        "03-pin",
        production(lambda d: f"{d.name('shop/web')}@{config_digest(d)}", deploy=False),
        "Wrong",
        "image ID",
    ),
    (
        "03-pin",
        production(lambda desk: digest_of(desk, "1.4-tested"), deploy=False),
        "Wrong",
        "nothing runs from it",
    ),
    ("03-pin", pinned_then_other_deployed, "Wrong", "nothing runs from it"),
    (
        "03-pin",
        production(lambda d: digest_of(d, "1.4-tested")[:-4], deploy=False),
        "Wrong",
        "can't be used",
    ),
    ("03-from", lambda desk: None, "NotYet", "missing"),
    ("03-from", page(lambda desk: desk.name("team/base:1")), "NotYet", "still trusts a tag"),
    ("03-from", page(base_pin, build=False), "Wrong", "Now build"),
    ("03-from", page(base_pin, push=False), "Wrong", "push it"),
    ("03-from", page(base_pin, build=False, before="other"), "Wrong", "other layers"),
    (
        "03-from",
        page(lambda desk: str(desk.bench.base("python:3.13-slim"))),
        "Wrong",
        "base/python",
    ),
]


class TestExercises(Tried):
    chapters = ("00", "01", "02", "03")


def test_an_unknown_exercise_lists_those_of_its_chapter() -> None:
    with pytest.raises(ExerciseError, match="03-digest, 03-pin, 03-from"):
        find_exercise("03-pins")
