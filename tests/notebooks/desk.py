"""A learner's desk: what a learner does with engine, registry and files, for tests of exercises.

Images are built once, as ``kept/…``; a test gives them the names that an exercise asks for, or
stores small ones that it needs, both over HTTP.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker.errors
import nbformat
import pytest
from docker.models.containers import Container
from made_images import Files, put, put_index

from labapp.attacks.journal import undo
from labapp.bench import Bench
from labapp.course import checks
from labapp.course.exercises import Coach, all_exercises, find_exercise
from labapp.errors import LabError, NotInRegistry
from labapp.journey.bases import SLIM
from labapp.lab import Lab
from labapp.reference import Reference
from labapp.state import REPOSITORY, ROLE_LABEL

PAGE = """FROM {base}
WORKDIR /site
RUN echo {text} > index.html
USER 10001
CMD ["python3", "-m", "http.server", "8000"]
"""
NOT_MADE = ("base/", "kept/", "odd/", "test/", "test-app/")
"""How names begin of what no chapter makes."""

NOTE = "application/vnd.in-toto+json"
INSTALL = "RUN cp -r shop /opt/venv/lib/*/site-packages\n"
NAIVE = (
    (REPOSITORY / "dockerfiles" / "first.Dockerfile")
    .read_text(encoding="utf-8")
    .replace("3.13", "3.13-slim")
    .replace("${BASE}", "${BASE}\nENV PIP_NO_COMPILE=1")
    .replace("RUN pip --python /opt/venv install --no-deps .\n", INSTALL)
)
"""The Dockerfile that chapter 01 starts from, on the slim base, and quick: pip compiles nothing."""

CAPSTONE = """
app-wheel app-till app-dockerfile script-head script-builder script-server script-write trail-run
"""

PRICES = """def total(prices, counts, tax):
    net = sum(price * count for price, count in zip(prices, counts))
    return (net * (100 + tax) + 50) // 100
"""


@dataclass(frozen=True)
class Desk:
    """A bench with a work folder of its own, and the steps that a learner takes."""

    bench: Bench

    @property
    def lab(self) -> Lab:
        return Lab(bench=self.bench, coach=Coach(self.bench))

    @property
    def work(self) -> Path:
        return self.bench.work

    @property
    def slim(self) -> str:
        return str(self.bench.base(SLIM))

    def at(self, work: Path) -> Any:
        return replace(self, bench=replace(self.bench, work=work))

    def name(self, short: str) -> str:
        """Return the whole name of an image, ``shop/web:1.4`` say; a whole one stays as it is."""
        own = f"{self.bench.registry.address}/"
        return own + short.removeprefix(own)

    def digest(self, short: str) -> str:
        return self.bench.registry.resolve(*short.split(":"))

    # Images on the engine

    def build(self, folder: Path, short: str, **options: Any) -> None:
        self.lab.build(folder, tag=self.name(short), **options)

    def push(self, short: str) -> None:
        self.lab.push(self.name(short))

    def made(self, folder: Path, short: str, **options: Any) -> None:
        """Build an image and push it."""
        self.build(folder, short, **options)
        self.push(short)

    def built(self, dockerfile: str, short: str, **files: str) -> None:
        """Build an image from a text and some files, and push it."""
        for name, text in {"Dockerfile": dockerfile, **files}.items():
            write(self.work / "built" / name, text)
        self.made(self.work / "built", short)

    def pushed(self, short: str, *, text: str) -> None:
        """Build a page that says a text, and push it."""
        self.built(PAGE.format(base=self.slim, text=text), short)

    def typed(self, folder: Path, short: str) -> None:
        """Build and push an image from the terminal."""
        for words in (("build", "-t", self.name(short), "."), ("push", self.name(short))):
            done = self.docker(*words, folder=folder)
            assert done.returncode == 0, done.stderr

    def noted(self, short: str, *, text: str) -> None:
        """Push a page as a terminal's `docker build` does where it notes how it built.

        The tag then names an index; where this engine makes none, it is made here.
        """
        write(self.work / "typed" / "Dockerfile", PAGE.format(base=self.slim, text=text))
        self.typed(self.work / "typed", short)
        held = self.bench.registry.image(self.name(short))
        if held.index is None:
            manifest = held.manifest
            own = dict(zip(("os", "architecture"), self.lab.platform.split("/"), strict=False))
            entry = {"mediaType": manifest.media_type, "platform": own}
            entry |= {"digest": manifest.digest, "size": len(manifest.raw)}
            note = self.store(held.reference.repository, b"{}", layer_type=NOTE, pack=bytes)
            self.index(short, entry, note, platform={"os": "unknown", "architecture": "unknown"})

    def tag(self, old: str, new: str) -> None:
        self.lab.tag(self.name(old), self.name(new))

    def run(self, short: str, command: object = None, **options: object) -> Container:
        containers = self.bench.engine.client.containers
        return containers.run(self.name(short), command, detach=True, **options)

    def docker(self, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Type a docker command."""
        argv, environment = ["docker", *words], self.bench.engine.environment()
        return subprocess.run(argv, env=environment, cwd=folder, capture_output=True, text=True)

    def shop(self, dockerfile: str = NAIVE) -> Path:
        """Copy the application, its prices in Python: it builds on the slim base, in seconds."""
        app = self.lab.application()
        (app / "Dockerfile").write_text(dockerfile)
        (app / "shop" / "_prices.c").unlink()
        (app / "shop" / "_prices.py").write_text(PRICES)
        return app

    # Images in the registry

    def copy(self, source: str, short: str) -> None:
        """Give an image of the registry one more name there, in any of its repositories."""
        registry = self.bench.registry
        held, target = registry.image(self.name(source)), Reference.parse(self.name(short))
        registry.copy(registry, held, to=target)
        if held.index is not None:
            origin, there = held.reference.repository, target.repository
            for entry in held.index.manifests:
                found = registry.manifest(origin, entry.digest)
                for blob in found.blobs:
                    registry.mount_blob(there, blob.digest, origin)
                registry.put_manifest(there, entry.digest, found.raw, found.media_type)
            registry.put_manifest(there, target.tag, held.index.raw, held.index.media_type)

    def store(self, short: str, *layers: Files | bytes, **more: Any) -> dict[str, Any]:
        """Upload an image that stands on nothing, and return its descriptor."""
        repository, _, tag = short.partition(":")
        own = {"os": "linux", "architecture": self.bench.engine.platform.split("/")[1]}
        return put(self.bench.registry, repository, tag, layers, platform=own, **more)

    def index(
        self, short: str, *entries: dict[str, Any], platform: Names | None = None, **more: object
    ) -> None:
        """Upload an index: its first image is for this platform, the others are for another one."""
        for other in entries[1:]:
            other["platform"] = platform or {"os": "linux", "architecture": "s390x"}
        repository, _, tag = short.partition(":")
        put_index(self.bench.registry, repository, tag, entries, **more)


def write(file: Path, text: str, **meant: str) -> None:
    """Write a file, with what its names in capitals stand for."""
    for name, value in meant.items():
        text = text.replace(name, value)
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)


def empty(bench: Bench) -> None:
    """Take away all that chapters make, on engine and in registry; what is kept stays.

    What other tests have made goes by their own hand, and leaves many repositories without a tag.
    """
    undo(bench)
    bench.state.write("private/accounts", {})
    for container in checks.containers(bench):
        if (container["Config"]["Labels"] or {}).get(ROLE_LABEL) not in ("registry", "private"):
            bench.engine.client.api.remove_container(container["Id"], force=True)
    made = {*bench.registry.repositories(), *(name.repository for name in on_engine(bench))}
    forget(bench, *(name for name in made if not name.startswith(NOT_MADE)), prune=False)


def on_engine(bench: Bench) -> list[Reference]:
    """What the engine holds of the lab's registry, under each of its names."""
    found, own = [], f"{bench.registry.address}/"
    for image in bench.engine.client.api.images():
        names = (*(image["RepoTags"] or ()), *(image["RepoDigests"] or ()))
        found += [Reference.parse(name) for name in names if name.startswith(own)]
    return found


def forget(bench: Bench, *repositories: str, prune: bool = True) -> None:
    """Take what is in some repositories off the engine and out of the registry.

    Without pruning, what is below stays as the cache of later builds, which take minutes.
    """
    for name in on_engine(bench):
        if name.repository in repositories:
            try:
                bench.engine.client.api.remove_image(str(name), force=True, noprune=not prune)
            except docker.errors.APIError as error:
                # Podman 4 lists names by digest that it has not.
                if error.status_code != 404 and "tag not known" not in str(error):
                    raise
    registry = bench.registry
    for repository in {*repositories} & {*registry.repositories()}:
        # A push that was broken off leaves a repository without a tag.
        with contextlib.suppress(NotInRegistry):
            for digest in {registry.resolve(repository, tag) for tag in registry.tags(repository)}:
                registry.delete_manifest(repository, digest)


Names = dict[str, Any]
Steps = Callable[[Any], object]
States = dict[str, list[Steps | tuple[Steps, str] | tuple[Steps, str, str]]]
"""By exercise, steps that solve it; or steps that don't, with the outcome and, if there is one, the
fact that the message must tell."""


def step(do: Callable[..., object]) -> Callable[..., Steps]:
    """Let a table name what a learner does, before there is a desk to do it at."""

    @functools.wraps(do)
    def named(*args: Any, **options: Any) -> Steps:
        return lambda desk: do(desk, *args, **options)

    return named


def nothing(desk: Desk) -> None:
    """As at first."""


@step
def all_of(desk: Desk, *steps: Steps) -> None:
    for each in steps:
        each(desk)


@step
def copied(desk: Desk, source: str, short: str) -> None:
    """Give an image of the registry the name that the exercise asks for."""
    desk.copy(source, short)


@step
def made(desk: Desk, folder: str, short: str) -> None:
    """Build an image from a folder that is there, and push it."""
    desk.made(desk.work / folder, short)


@functools.cache
def cells(chapter: str) -> dict[str, str]:
    """Return the source of each cell of a chapter's notebook."""
    (file,) = (REPOSITORY / "notebooks").glob(f"{chapter}_*.ipynb")
    return {cell.id: cell.source for cell in nbformat.read(file, as_version=4).cells}


def run_cells(chapter: str, ids: str, names: Names) -> Names:
    """Run some of a chapter's cells with what they need, and return what there is then."""
    for id in ids.split():
        exec(cells(chapter)[id], names)
    return names


def capstone(bench: Bench) -> Names:
    """Write what chapter 08 begins with, the naive script and its application; see its cells."""
    import pandas as pd

    lab = Desk(bench).lab
    # The last cell also shows the trail of a delivery, which is not made here.
    run = SimpleNamespace(steps=(), image=lab.base(SLIM))
    names = {"lab": lab, "run": run, "pd": pd, "re": re, "shutil": shutil, "LabError": LabError}
    return run_cells("08", CAPSTONE, names)


@step
def solved(desk: Any, id: str, names: Callable[[Any], Names] = attrgetter("names")) -> object:
    """Run the chapter's own solution, with what the cells above it define."""
    defined = dict(names(desk))
    exec(find_exercise(id).solution, defined)
    return defined.get("answer")


def verdict(id: str, bench: Bench, answer: object = ...) -> tuple[str, str]:
    judged = find_exercise(id).check(bench, answer)
    return judged.outcome, judged.message


class Tried:
    """The tests of some chapters' exercises: the module names their states in STATES.

    The module's ``desk`` is where the steps are taken.
    """

    chapters: tuple[str, ...]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "steps" in metafunc.fixturenames:
            metafunc.parametrize("id, steps, outcome, fact", list(_rows(metafunc.module.STATES)))

    def test_states_are_judged(
        self, id: str, steps: Steps, outcome: str, fact: str, desk: Desk
    ) -> None:
        """What the steps return, if anything, is the answer."""
        answer = steps(desk)
        found, message = verdict(id, desk.bench, ... if answer is None else answer)
        assert (found, fact in message) == (outcome, True), f"{found}: {message}"

    def test_every_exercise_is_tried_enough(self, request: pytest.FixtureRequest) -> None:
        for id in (id for id in all_exercises() if id[:2] in self.chapters):
            right = [callable(case) for case in request.module.STATES[id]]
            assert right.count(True) >= 4 and right.count(False) >= 5, id


def _rows(states: States) -> Iterator[tuple[str, Steps, str, str]]:
    for id, cases in states.items():
        for case in cases:
            steps, outcome, fact = (case, "Correct", "") if callable(case) else (*case, "")[:3]
            yield id, steps, outcome, fact
