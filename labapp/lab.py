"""The lab: the one handle that notebooks hold. It only passes on; the work is done below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from labapp import deployments, images, inspection, pins
from labapp.bench import Bench
from labapp.charts import Chart
from labapp.deployments import Deployment
from labapp.exercises.coach import Coach
from labapp.exercises.exercise import Verdict
from labapp.feedback import Feedback
from labapp.images import Pull, Push, Running, builds
from labapp.images.builds import Build
from labapp.inspection import CACHE, Comparison, Inspection
from labapp.lab_attacks import Attacks
from labapp.manifests import ImageConfig, Manifest
from labapp.progress.journey import JourneyMap, journey_map
from labapp.progress.overview import Progress, overview
from labapp.reference import Reference
from labapp.registry import Registry, request_log
from labapp.registry.request_log import Wire
from labapp.workspace import copy_application, copy_dockerfile


@dataclass(frozen=True)
class Lab(Attacks):
    """Everything that a chapter does, with the command line that does the same.

    Attributes:
        bench: engine, registry, base images, and the folder for this chapter's files.
        feedback: where progress and commands are shown.
        coach: judges the exercises.
    """

    bench: Bench
    feedback: Feedback
    coach: Coach = field(repr=False)

    @property
    def registry(self) -> Registry:
        """The registry over HTTP: its repositories, tags, manifests and blobs."""
        return self.bench.registry

    @property
    def address(self) -> str:
        """The registry's host and port; the first part of every image name in this lab."""
        return self.bench.registry.address

    @property
    def work(self) -> Path:
        """The folder for this chapter's files."""
        return self.bench.work

    def __repr__(self) -> str:
        return f"Lab({self.bench.engine.describe()} · registry {self.address})"

    def application(
        self, *, dockerfile: str | None = None, folder: str = "app", fresh: bool = False
    ) -> Path:
        """Return this chapter's own copy of the application; see :func:`copy_application`."""
        return copy_application(self.bench, dockerfile=dockerfile, folder=folder, fresh=fresh)

    def dockerfile(self, name: str) -> Path:
        """Return this chapter's own copy of one of the lab's Dockerfiles."""
        return copy_dockerfile(self.bench, name, self.work / f"{name}.Dockerfile")

    def base(self, name: str) -> str:
        """Return the lab's copy of a public Python image, ``python:3.13`` say, by digest."""
        return str(self.bench.base(name))

    def build(
        self,
        context: str | Path,
        *,
        tag: str,
        dockerfile: str | Path | None = None,
        args: Mapping[str, str] | None = None,
        target: str | None = None,
        cache: bool = True,
    ) -> Build:
        """Build an image: ``docker build``.

        A ``FROM`` that takes a public Python image by build argument gets the lab's own copy of
        it, pinned by digest, and pip is pointed to the wheels in the context.

        Args:
            context: the folder that is sent to the engine.
            tag: the image's name, ``registry/repository:tag``.
            dockerfile: the Dockerfile; by default the one in the context.
            args: further build arguments.
            target: the stage to stop at.
            cache: whether steps may come from the cache.

        Raises:
            BuildError: a step failed; the message ends with what it printed.
        """
        folder = Path(context)
        file = Path(dockerfile) if dockerfile is not None else folder / "Dockerfile"
        return builds.build(
            self.bench.engine,
            folder,
            tag=tag,
            dockerfile=file,
            args={**self.bench.build_arguments(file), **(args or {})},
            target=target,
            cache=cache,
            labels=self.bench.state.labels,
            feedback=self.feedback,
        )

    def tag(self, source: str, target: str) -> None:
        """Give an image on the engine one more name: ``docker tag``."""
        images.tag(self.bench.engine, source, target, feedback=self.feedback)

    def push(self, reference: str) -> Push:
        """Send an image to its registry: ``docker push``; then check that it arrived whole."""
        return images.push(self.bench.engine, self.bench.server, reference, feedback=self.feedback)

    def pull(self, reference: str) -> Pull:
        """Fetch an image from its registry: ``docker pull``."""
        return images.pull(self.bench.engine, self.bench.server, reference, feedback=self.feedback)

    def run(
        self,
        reference: str,
        *,
        name: str | None = None,
        environment: Mapping[str, str] | None = None,
        wait_for: str = "/health",
    ) -> Running:
        """Start a container and wait until it answers: ``docker run -d``.

        Args:
            reference: the image.
            name: the container's name; a container of this lab with that name is replaced.
            environment: environment variables.
            wait_for: the path that answers once the service is ready.
        """
        return images.run(
            self.bench.engine,
            reference,
            name=name,
            environment=environment,
            labels=self.bench.state.labels,
            wait_for=wait_for,
            feedback=self.feedback,
        )

    def run_once(
        self, reference: str, command: Sequence[str], *, beside: Running | None = None
    ) -> str:
        """Run one command in a new container, return what it printed: ``docker run --rm``.

        Args:
            reference: the image.
            command: the program and its arguments.
            beside: a running container whose processes and network the command is to see.
        """
        return images.run_once(
            self.bench.engine,
            reference,
            command,
            beside=beside,
            labels=self.bench.state.labels,
            feedback=self.feedback,
        )

    def remove(self, *references: str) -> None:
        """Take images off the engine, as if it had never seen them: ``docker image rm``."""
        self.feedback.command(["docker", "image", "rm", *references])
        for reference in references:
            if images.remove(self.bench.engine, reference):
                self.feedback.say(f"Removed {reference} from the engine.")

    def digest(self, reference: str) -> str:
        """Return the digest that the registry serves for a reference."""
        return str(pins.pin(self.bench.registry, reference).digest)

    def manifest(self, reference: str) -> Manifest:
        """Return an image's manifest, from the registry."""
        return self.bench.registry.image(reference).manifest

    def config(self, reference: str) -> ImageConfig:
        """Return an image's config, from the registry."""
        return self.bench.registry.image(reference).config

    def layers(self, reference: str) -> pd.DataFrame:
        """Return an image's layers, lowest first; see :func:`inspection.layers`."""
        return inspection.layers(self.bench.registry.image(reference))

    def inspect(self, reference: str) -> Inspection:
        """Read what is inside an image, in this registry or another; see :func:`inspect`."""
        name = Reference.parse(reference)
        registry = self.registry if name.registry == self.address else Registry(name.registry)
        return inspection.inspect(
            registry, name, cache=self.bench.state.path(CACHE), feedback=self.feedback
        )

    def compare(self, **images: Inspection | str) -> Comparison:
        """Put images side by side, by short names: ``lab.compare(full=…, slim=…)``.

        Args:
            images: references, or what ``inspect`` returned.
        """
        return Comparison(
            {
                name: self.inspect(each) if isinstance(each, str) else each
                for name, each in images.items()
            }
        )

    def listening(self) -> AbstractContextManager[Wire]:
        """Keep what is said to the registry inside the ``with`` block; the lab's own words not."""
        return request_log.listening(self.bench.server)

    def pin(self, reference: str) -> Reference:
        """Return ``repository@sha256:…`` for what a tag names now."""
        return pins.pin(self.bench.registry, reference)

    def pin_deployment(self, file: str | Path) -> None:
        """Rewrite a deployment file: each tag becomes the digest that the registry serves now."""
        for change in pins.pin_deployment(Path(file), self.bench.registry):
            self.feedback.say(f"line {change.line}: {change.before} → {change.after}")

    def pin_dockerfile(self, file: str | Path) -> None:
        """Rewrite a Dockerfile's ``FROM`` lines: each tag gets the digest that it names now."""
        for change in pins.pin_dockerfile(Path(file), self.bench.registry):
            self.feedback.say(f"line {change.line}: {change.before} → {change.after}")

    def deploy(self, file: str | Path) -> Deployment:
        """Run the services of a deployment file, as a server does: pull, then replace."""
        return deployments.deploy(
            self.bench.engine,
            self.bench.server,
            Path(file),
            state=self.bench.state,
            feedback=self.feedback,
        )

    def stop_registry(self) -> None:
        """Take the registry down; what it stores stays."""
        self.bench.server.stop(feedback=self.feedback)

    def start_registry(self) -> None:
        """Bring the registry back at the same address."""
        self.bench.server.start(feedback=self.feedback)

    def show(self, chart: Chart) -> None:
        """Show a chart below the cell."""
        chart.show()

    def check(self, id: str, answer: object = ..., *, strict: bool = False) -> Verdict:
        """Judge an exercise; see :meth:`Coach.check`."""
        return self.coach.check(id, answer, strict=strict)

    def hint(self, id: str) -> None:
        """Show the next hint for an exercise."""
        self.coach.hint(id)

    def solution(self, id: str) -> None:
        """Show a way to solve an exercise."""
        self.coach.solution(id)

    def progress(self, *, name: str | None = None) -> Progress:
        """Return which exercises are passed, and where to go on; ``labapp progress``.

        Args:
            name: from now on, the learner's name in the receipts.
        """
        if name is not None:
            self.coach.receipts.rename(name)
        return overview(self.coach.receipts, self.bench.repository / "notebooks")

    def map(self) -> JourneyMap:
        """Return the journey map, with those steps lit whose exercises are passed."""
        return journey_map(self.coach.receipts.read().passed)

    def clean_up(self) -> None:
        """Remove the containers that this lab started; images stay, so that a return is quick."""
        for name in images.remove_running(self.bench.engine, self.bench.state.labels):
            self.feedback.command(["docker", "rm", "--force", name])
