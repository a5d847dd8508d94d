"""A learner's desk: what a learner does with engine, registry and files, for tests of exercises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labapp import deployments, images
from labapp.bench import Bench
from labapp.exercises import find_exercise
from labapp.feedback import QuietFeedback
from labapp.images import builds
from labapp.registry.copies import put_image

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


Steps = Callable[[Desk], object]


def judge(id: str, desk: Desk, steps: Steps) -> tuple[str, str]:
    answer = steps(desk)
    verdict = find_exercise(id).check(desk.bench, ... if answer is None else answer)
    return verdict.outcome, verdict.message
