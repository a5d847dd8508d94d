"""A learner's desk: what a learner does with engine, registry and files, for tests of exercises.

Images are built once, as ``kept/…``; a test gives them the names that an exercise asks for, or
stores small ones that it needs, both over HTTP.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import docker.errors
import pytest
from docker.models.containers import Container

from labapp.attacks.journal import undo
from labapp.bench import Bench
from labapp.course import checks
from labapp.course.exercises import Coach, all_exercises, find_exercise
from labapp.errors import NotInRegistry
from labapp.feedback import QuietFeedback
from labapp.journey import build as builds
from labapp.journey import deploy as deployments
from labapp.journey import transfer
from labapp.journey.bases import SLIM
from labapp.lab import Lab
from labapp.machine.engine import tar_of
from labapp.private.accounts import Accounts
from labapp.registry.manifests import digest_of
from labapp.state import LABEL, REPOSITORY, ROLE_LABEL

QUIET = QuietFeedback()
KEPT = "kept/"
OCI = "application/vnd.oci.image."
PAGE = "FROM {base}\nWORKDIR /site\nRUN echo {text} > index.html\nUSER 10001\nCMD {cmd}\n"
PRICES = """def total(prices, counts, tax):
    net = sum(price * count for price, count in zip(prices, counts))
    return round(net * (100 + tax) / 100)
"""
SERVE = '["python3", "-m", "http.server", "8000"]'

Files = Mapping[str, str]


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

    def at(self, work: Path) -> Desk:
        return replace(self, bench=replace(self.bench, work=work))

    def name(self, short: str) -> str:
        return f"{self.bench.registry.address}/{short}"

    def digest(self, short: str) -> str:
        return self.bench.registry.resolve(*short.split(":"))

    # Images on the engine

    def build(self, folder: Path, short: str, *, target: str | None = None) -> None:
        builds.build(
            self.bench.engine,
            folder,
            tag=self.name(short),
            args=self.bench.build_arguments(folder / "Dockerfile"),
            target=target,
        )

    def push(self, short: str) -> None:
        transfer.push(self.bench.engine, self.bench.server, self.name(short))

    def built(self, dockerfile: str, short: str, **files: str) -> None:
        """Build an image from a text and some files, and push it."""
        for name, text in {"Dockerfile": dockerfile, **files}.items():
            write(self.work / "built" / name, text)
        self.made(self.work / "built", short)

    def made(self, folder: Path, short: str, *, target: str | None = None) -> None:
        """Build an image and push it."""
        self.build(folder, short, target=target)
        self.push(short)

    def pushed(self, short: str, *, text: str = "hello", cmd: str = SERVE) -> None:
        """Build a page that says a text, and push it."""
        self.built(PAGE.format(base=self.slim, text=text, cmd=cmd), short)

    def tag(self, old: str, new: str) -> None:
        transfer.tag(self.bench.engine, self.name(old), self.name(new))

    def run(self, short: str, command: object = None, **options: object) -> Container:
        return self.bench.engine.client.containers.run(
            self.name(short), command, detach=True, **options
        )

    def deploy(self, file: Path) -> None:
        deployments.deploy(self.bench.engine, self.bench.server, file)

    def shop(self, dockerfile: str) -> Path:
        """Copy the application, its prices in Python: it builds on the slim base, in seconds."""
        app = self.lab.application()
        (app / "Dockerfile").write_text(dockerfile)
        (app / "shop" / "_prices.c").unlink()
        (app / "shop" / "_prices.py").write_text(PRICES)
        project = (app / "pyproject.toml").read_text(encoding="utf-8")
        plain = re.sub(r"^ext-modules.*$", "", project, flags=re.MULTILINE)
        (app / "pyproject.toml").write_text(plain, encoding="utf-8")
        return app

    # Images in the registry

    def copy(self, source: str, short: str) -> None:
        """Give an image of the registry one more name there, in any of its repositories."""
        registry = self.bench.registry
        held = registry.image(source if source.startswith(registry.address) else self.name(source))
        repository, _, tag = short.partition(":")
        if repository != held.reference.repository:
            for blob in held.manifest.blobs:
                assert registry.mount_blob(repository, blob.digest, held.reference.repository)
        registry.put_manifest(repository, tag, held.manifest.raw, held.manifest.media_type)

    def store(
        self,
        short: str,
        *layers: Files | bytes,
        pack: Callable[[bytes], bytes] = gzip.compress,
        kind: str = "layer.v1.tar+gzip",
        config: Mapping[str, Any] | None = None,
        **manifest: Any,
    ) -> dict[str, Any]:
        """Upload an image that stands on nothing, and return its descriptor."""
        registry, (repository, _, tag) = self.bench.registry, short.partition(":")
        plain = [each if isinstance(each, bytes) else _tar(each) for each in layers]
        cpu = self.bench.engine.platform.split("/")[1]
        rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in plain]}
        about = {"os": "linux", "architecture": cpu, "rootfs": rootfs, "config": config or {}}

        def blob(media_type: str, content: bytes) -> dict[str, Any]:
            digest, size = registry.upload_blob(repository, [content])
            media_type = media_type if "/" in media_type else OCI + media_type
            return {"mediaType": media_type, "digest": digest, "size": size}

        content = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}manifest.v1+json",
            "config": blob("config.v1+json", json.dumps(about).encode()),
            "layers": [blob(kind, pack(layer)) for layer in plain],
            **manifest,
        }
        raw = json.dumps(content).encode()
        registry.put_manifest(repository, tag or digest_of(raw), raw, content["mediaType"])
        return {"mediaType": content["mediaType"], "digest": digest_of(raw), "size": len(raw)}

    def index(self, short: str, *entries: dict[str, Any], **more: object) -> None:
        """Upload an index: its first image is for this platform, the others are for another one."""
        own = self.bench.engine.platform.split("/")[1]
        listed = [
            {**entry, "platform": {"os": "linux", "architecture": "s390x" if number else own}}
            for number, entry in enumerate(entries)
        ]
        kind = f"{OCI}index.v1+json"
        content = {"schemaVersion": 2, "mediaType": kind, "manifests": listed, **more}
        repository, _, tag = short.partition(":")
        self.bench.registry.put_manifest(repository, tag, json.dumps(content).encode(), kind)


def _tar(files: Files) -> bytes:
    return tar_of({name: text.encode() for name, text in files.items()})


def empty(bench: Bench) -> None:
    """Take away all that chapters make, on engine and in registry; what is kept stays."""
    undo(bench)
    accounts = Accounts(bench.state)
    for name in accounts.names():
        accounts.remove(name)
    stop(bench)
    registry = bench.registry
    made = {*registry.repositories()}
    for image in bench.engine.client.api.images(filters={"label": f"{LABEL}={bench.state.lab_id}"}):
        names = (name.partition("/") for name in image["RepoTags"] or ())
        made |= {rest.rpartition(":")[0] for at, _, rest in names if at == registry.address}
    chapters = (name for name in made if not name.startswith(("base/", KEPT)))
    forget(bench, *chapters, prune=False)


def write(file: Path, text: str, **meant: str) -> None:
    """Write a file, with what its names in capitals stand for."""
    for name, value in meant.items():
        text = text.replace(name, value)
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)


def stop(bench: Bench) -> None:
    """Take away the containers that were started from the lab's images."""
    for container in checks.containers(bench):
        if (container["Config"]["Labels"] or {}).get(ROLE_LABEL) not in ("registry", "private"):
            bench.engine.client.api.remove_container(container["Id"], force=True)


def forget(bench: Bench, *repositories: str, prune: bool = True) -> None:
    """Take what is in some repositories off the engine and out of the registry.

    Without pruning, what is below stays as the cache of later builds, which take minutes.
    """
    api, registry = bench.engine.client.api, bench.registry
    for repository in repositories:
        wanted = {"reference": f"{registry.address}/{repository}"}
        for image in api.images(filters=wanted):
            for name in (*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())):
                if name.startswith(wanted["reference"]):
                    with contextlib.suppress(docker.errors.NotFound):
                        api.remove_image(name, force=True, noprune=not prune)
    for repository in {*repositories} & {*registry.repositories()}:
        for tag in registry.tags(repository):
            with contextlib.suppress(NotInRegistry):
                registry.delete_manifest(repository, registry.resolve(repository, tag))


Steps = Callable[[Any], object]
Right = Mapping[str, list[Steps]]
"""By exercise, steps that solve it."""
Wrong = Mapping[str, list[tuple[Steps, str] | tuple[Steps, str, str]]]
"""Steps that don't, the outcome and, if there is one, the fact that the message must tell."""


P = ParamSpec("P")


def step(do: Callable[Concatenate[Any, P], object]) -> Callable[P, Steps]:
    """Let a table name what a learner does, before there is a desk to do it at."""

    @functools.wraps(do)
    def named(*args: P.args, **options: P.kwargs) -> Steps:
        return lambda desk: do(desk, *args, **options)

    return named


def nothing(desk: Desk) -> None:
    """As at first."""


def unanswered(desk: Desk) -> object:
    """The exercise's cell as it is given."""
    return ...


@step
def all_of(desk: Desk, *steps: Steps) -> None:
    for each in steps:
        each(desk)


@step
def named(desk: Desk, kept: str, short: str) -> None:
    """Give an image that is there the name that the exercise asks for."""
    desk.copy(f"kept/{kept}", short)


@step
def base(desk: Desk, name: str, short: str) -> None:
    """Give a base image the name that the exercise asks for."""
    desk.copy(str(desk.bench.base(name)), short)


def cells(chapter: str) -> dict[str, str]:
    """Return the source of each cell of a chapter's notebook."""
    (file,) = (REPOSITORY / "notebooks").glob(f"{chapter}_*.ipynb")
    listed = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in listed}


def judge(id: str, desk: Desk, steps: Steps) -> tuple[str, str]:
    """Take some steps, whose answer is given where they return one, and let the exercise judge."""
    answer = steps(desk)
    return verdict(id, desk.bench, ... if answer is None else answer)


def verdict(id: str, bench: Bench, answer: object = ...) -> tuple[str, str]:
    judged = find_exercise(id).check(bench, answer)
    return judged.outcome, judged.message


class Tried:
    """The tests of some chapters' exercises; the module names its states in RIGHT and WRONG.

    The module's ``desk`` is where the steps are taken.
    """

    chapters: tuple[str, ...]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        module, names = metafunc.module, metafunc.fixturenames
        if "outcome" in names:
            wrong = list(_flat(module.WRONG))
            metafunc.parametrize(("id", "steps", "outcome", "fact"), wrong)
        elif "steps" in names:
            metafunc.parametrize(("id", "steps"), list(_flat(module.RIGHT)))

    def test_right_ways_pass(self, id: str, steps: Steps, desk: Desk) -> None:
        outcome, message = judge(id, desk, steps)
        assert outcome == "Correct", message

    def test_wrong_states_do_not(
        self, id: str, steps: Steps, outcome: str, fact: str, desk: Desk
    ) -> None:
        found, message = judge(id, desk, steps)
        assert (found, fact in message) == (outcome, True), message

    def test_every_exercise_is_tried_enough(self, request: pytest.FixtureRequest) -> None:
        for id in (id for id in all_exercises() if id[:2] in self.chapters):
            assert len(request.module.RIGHT[id]) >= 2, id
            assert len(request.module.WRONG[id]) >= 4, id


def _flat(cases: Mapping[str, Iterable[Any]]) -> Iterator[tuple[Any, ...]]:
    for id, listed in cases.items():
        for case in listed:
            steps, *rest = case if isinstance(case, tuple) else (case,)
            yield (id, steps, *rest, "")[:4] if rest else (id, steps)
