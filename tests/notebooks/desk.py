"""A learner's desk: what a learner does with engine, registry and files, for tests of exercises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from labapp import attacks, deployments, images
from labapp.bench import Bench
from labapp.exercises import all_exercises, evidence, find_exercise
from labapp.feedback import QuietFeedback
from labapp.images import builds
from labapp.private.accounts import Accounts
from labapp.registry.copies import put_image
from labapp.state import LABEL, ROLE_LABEL

QUIET = QuietFeedback()
PAGE = "FROM {base}\nWORKDIR /site\nRUN echo {text} > index.html\nUSER 10001\nCMD {cmd}\n"
SERVE = '["python3", "-m", "http.server", "8000"]'


@dataclass(frozen=True)
class Desk:
    """A bench with a work folder of its own, and the steps that a learner takes."""

    bench: Bench

    @property
    def work(self) -> Path:
        return self.bench.work

    def name(self, short: str) -> str:
        return f"{self.bench.registry.address}/{short}"

    def image(self, short: str, *, text: str = "hello", cmd: str = SERVE, base: str = "") -> str:
        """Build a page that says a text, under a name."""
        folder = self.work / "made"
        folder.mkdir(exist_ok=True)
        base = base or str(self.bench.base("python:3.13-slim"))
        (folder / "Dockerfile").write_text(PAGE.format(base=base, text=text, cmd=cmd))
        self.build(folder, short)
        return self.name(short)

    def build(self, folder: Path, short: str, *, target: str | None = None) -> None:
        builds.build(
            self.bench.engine,
            folder,
            tag=self.name(short),
            args=self.bench.build_arguments(folder / "Dockerfile"),
            target=target,
            labels=self.bench.state.labels,
            feedback=QUIET,
        )

    def push(self, short: str) -> None:
        images.push(self.bench.engine, self.bench.server, self.name(short), feedback=QUIET)

    def copy(self, source: str, short: str) -> None:
        """Give an image of the registry one more name there, in any of its repositories."""
        registry = self.bench.registry
        held = registry.image(source if source.startswith(registry.address) else self.name(source))
        repository, _, tag = short.partition(":")
        if repository != held.reference.repository:
            for blob in held.manifest.blobs:
                assert registry.mount_blob(repository, blob.digest, held.reference.repository)
        put_image(registry, repository, tag, held.manifest)

    def tag(self, old: str, new: str) -> None:
        images.tag(self.bench.engine, self.name(old), self.name(new), feedback=QUIET)

    def pushed_from(self, folder: Path, short: str, *, target: str | None = None) -> None:
        self.build(folder, short, target=target)
        self.push(short)

    def pushed(self, short: str, **made: str) -> None:
        self.image(short, **made)
        self.push(short)

    def run(self, short: str, **options: object) -> None:
        self.bench.engine.client.containers.run(
            self.name(short), detach=True, labels=self.bench.state.labels, **options
        )

    def deploy(self, file: Path) -> None:
        deployments.deploy(
            self.bench.engine, self.bench.server, file, state=self.bench.state, feedback=QUIET
        )


def empty(bench: Bench) -> None:
    """Take away all that chapters make, on engine and in registry."""
    attacks.undo(bench, feedback=QUIET)
    accounts = Accounts(bench.state)
    for name in accounts.names():
        accounts.remove(name)
    api = bench.engine.client.api
    for container in evidence.containers(bench):
        if container["Config"]["Labels"].get(ROLE_LABEL) != "registry":
            api.remove_container(container["Id"], force=True)
    label = f"{LABEL}={bench.state.lab_id}"
    for image in api.images(filters={"label": label}):
        for name in image["RepoTags"] or ():
            if name.startswith(bench.registry.address) and "/base/" not in name:
                # What is below stays as the cache of later builds: installing takes minutes.
                api.remove_image(name, force=True, noprune=True)
    for repository in bench.registry.repositories():
        if not repository.startswith("base/"):
            tags = bench.registry.tags(repository)
            digests = {bench.registry.resolve(repository, tag) for tag in tags}
            for digest in digests:
                bench.registry.delete_manifest(repository, digest)


Steps = Callable[[Desk], object]


def judge(id: str, desk: Desk, steps: Steps) -> tuple[str, str]:
    answer = steps(desk)
    verdict = find_exercise(id).check(desk.bench, ... if answer is None else answer)
    return verdict.outcome, verdict.message


class Tried:
    """The tests of some chapters' exercises; the module names its states in RIGHT and WRONG.

    RIGHT has an exercise and the steps that solve it; WRONG has an exercise, steps that don't, the
    outcome, and words of its message. The module's ``desk`` is where the steps are taken.
    """

    chapters: tuple[str, ...]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        names = tuple(n for n in ("id", "steps", "outcome", "words") if n in metafunc.fixturenames)
        if names:
            cases = metafunc.module.WRONG if "outcome" in names else metafunc.module.RIGHT
            metafunc.parametrize(names, cases)

    def test_right_ways_pass(self, id: str, steps: Steps, desk: Desk) -> None:
        outcome, message = judge(id, desk, steps)
        assert outcome == "Correct", message

    def test_wrong_states_do_not(
        self, id: str, steps: Steps, outcome: str, words: str, desk: Desk
    ) -> None:
        found, message = judge(id, desk, steps)
        assert (found, words in message) == (outcome, True), message

    def test_every_exercise_is_tried_enough(self, request: pytest.FixtureRequest) -> None:
        for id in (id for id in all_exercises() if id[:2] in self.chapters):
            assert len([case for case in request.module.RIGHT if case[0] == id]) >= 2, id
            assert len([case for case in request.module.WRONG if case[0] == id]) >= 4, id
