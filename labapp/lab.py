"""The lab: the one handle that notebooks hold. Most work is done below it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from labapp import feedback
from labapp.attacks import attacks, delivery, forging, journal
from labapp.attacks.attacks import Happened
from labapp.attacks.delivery import Judgement, PipelineRun
from labapp.bench import Bench, prepare
from labapp.course import post
from labapp.course.exercises import Coach, Submission, Verdict, saboteur, submission
from labapp.course.progress import journey_map
from labapp.errors import AttackError, ImageError, RegistryError
from labapp.inside import inspection
from labapp.inside.inspection import Comparison, Inspection
from labapp.journey import build, deploy, pin, run, transfer
from labapp.private.registry import PrivateRegistry
from labapp.reference import DOCKER_HUB, Reference, is_digest
from labapp.registry import log
from labapp.registry.client import Registry
from labapp.registry.log import Wire
from labapp.registry.manifests import ImageConfig, Manifest, Platform
from labapp.state import State

if TYPE_CHECKING:
    import pandas as pd

    from labapp.charts import Chart
    from labapp.journey.build import Build
    from labapp.journey.deploy import Deployment
    from labapp.journey.run import Running
    from labapp.journey.transfer import Transfer


def open_lab(chapter: str) -> Lab | Submission:
    """Open the lab for a chapter: find or start engine and registry, and say where they are.

    Where the notebook is being graded, nothing is started: receipts stand in for the lab.

    Args:
        chapter: two digits; the chapter's files are in ``work/<chapter>`` beside the notebook.

    Raises:
        LabError: something is missing; the message says what, and what to do.
    """
    if graded := submission(Path.cwd()):
        feedback.say(f"This notebook is being graded, by the receipts in '{graded.file.name}'.")
        return graded
    work = Path.cwd() / "work" / chapter
    work.mkdir(parents=True, exist_ok=True)
    bench = replace(prepare(State.open()), work=work)
    engine = bench.engine
    # So that `!docker` in a cell speaks to the same engine, wherever the kernel was started.
    os.environ.update(engine.variables)
    lab = Lab(bench, Coach(bench))
    # Not from a delivery script, which would undo what it has to survive.
    if "LAB_SERVICE" not in os.environ:
        post.post(lab.coach.receipts, chapter)
        try:
            if journal.Journal(bench.state).changes():
                feedback.say("An attack of another session was still on. It is taken back:")
            journal.undo(bench)
        except AttackError as error:
            feedback.say(str(error))
    _show_tables_plainly()
    if os.environ.get("LABAPP_CLASS"):
        feedback.say("Your teacher can see where you are. `lab.help('…')` asks a question.")
    feedback.say(
        f"{engine.name} {engine.version} ({engine.store} image store, {engine.builder} builder) · "
        f"registry {lab.address} · lab {lab.id}"
    )
    return lab


def _show_tables_plainly() -> None:
    """Let a notebook show an instruction whole, a digest's beginning, and no nameless numbers."""
    if "ipykernel" not in sys.modules:
        return
    import pandas as pd
    from IPython import get_ipython

    def html(rows: pd.DataFrame) -> str:
        named = rows.index.name is not None or not pd.api.types.is_integer_dtype(rows.index)
        cut = len(rows) > pd.get_option("display.max_rows")
        most = pd.get_option("display.min_rows") if cut else None
        shown = rows.map(lambda each: f"{each[:19]}…" if is_digest(str(each)) else each)
        with pd.option_context("display.max_colwidth", 100):
            return shown.to_html(index=named, max_rows=most, show_dimensions=cut, notebook=True)

    formatters = get_ipython().display_formatter.formatters
    formatters["text/html"].for_type(pd.DataFrame, html)


@dataclass(frozen=True)
class Lab:
    """Everything that a chapter does, with the command line that does the same."""

    bench: Bench
    coach: Coach = field(repr=False)

    @property
    def id(self) -> str:
        """Eight hexadecimal digits that tell this lab from others."""
        return self.bench.state.lab_id

    @property
    def platform(self) -> str:
        """What the engine's containers run on by default, such as ``linux/amd64``."""
        return self.bench.engine.platform

    @property
    def source(self) -> Path:
        """The source of the application that every chapter builds; copy it before you change it."""
        return self.bench.application

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
        """Return this chapter's own copy of the application's source; one that is there is kept.

        Args:
            dockerfile: which of the lab's Dockerfiles goes with it, as ``Dockerfile``; by default
                none.
            folder: the copy's name, for a chapter that needs more than one.
            fresh: throw away the changes of an earlier visit and copy anew.

        Raises:
            ExerciseError: the lab has no such Dockerfile.
        """
        copy = self.work / folder
        if fresh and copy.exists():
            shutil.rmtree(copy)
        if not copy.exists():
            shutil.copytree(self.source, copy)
        if dockerfile is not None and not (copy / "Dockerfile").exists():
            self.bench.copy_dockerfile(dockerfile, copy / "Dockerfile")
        return copy

    def dockerfile(self, name: str) -> Path:
        """Return this chapter's own copy of one of the lab's Dockerfiles: ``first``, ``full``, …"""
        return self.bench.copy_dockerfile(name, self.work / f"{name}.Dockerfile")

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
            dockerfile: by default the one in the context.
            args: further build arguments.
            target: the stage to stop at.
            cache: whether steps may come from the cache.

        Raises:
            BuildError: a step failed; the message ends with what it printed.
        """
        folder = Path(context)
        file = Path(dockerfile) if dockerfile is not None else folder / "Dockerfile"
        return build.build(
            self.bench.engine,
            folder,
            tag=tag,
            dockerfile=file,
            args={**self.bench.build_arguments(file), **(args or {})},
            target=target,
            cache=cache,
        )

    def tag(self, source: str, target: str) -> None:
        """Give an image on the engine one more name: ``docker tag``."""
        transfer.tag(self.bench.engine, self._in_full(source), target)

    def push(self, reference: str) -> Transfer:
        """Send an image to its registry: ``docker push``; then check that it arrived whole."""
        return transfer.push(self.bench.engine, self.bench.server, self._in_full(reference))

    def pull(self, reference: str) -> Transfer:
        """Fetch an image from its registry: ``docker pull``."""
        return transfer.pull(self.bench.engine, self.bench.server, self._in_full(reference))

    def run(self, reference: str, *, name: str | None = None, wait_for: str = "/health") -> Running:
        """Start a container and wait until it answers at a path: ``docker run -d``.

        A container of this lab that has the name already is replaced.
        """
        return run.run(self.bench.engine, self._in_full(reference), name=name, wait_for=wait_for)

    def run_once(
        self,
        reference: str,
        command: Sequence[str],
        *,
        beside: Running | None = None,
        platform: str | None = None,
    ) -> str:
        """Run one command in a new container, return what it printed: ``docker run --rm``.

        Started ``beside`` a running container, it sees that one's processes and network. Of an
        index, ``platform``, ``linux/arm64`` say, asks for another image than the engine's own.
        """
        engine, name = self.bench.engine, self._in_full(reference)
        return run.run_once(engine, name, command, beside=beside, platform=platform)

    def _in_full(self, reference: str) -> str:
        """Return a name; ImageError if it lacks the registry's address, and only so means nothing.

        Docker would look for it on Docker Hub, and tell of that.
        """
        short, engine = transfer.with_tag(reference), self.bench.engine
        full = f"{self.address}/{short}"
        if short.registry == DOCKER_HUB and not str(reference).startswith(DOCKER_HUB):
            with engine.doing(f"looking for the image '{short}'", ImageError):
                lacks = not engine.image(str(short))
            with contextlib.suppress(RegistryError):  # it is down, or has none of it
                if lacks and self.registry.digest(full):
                    raise ImageError(
                        f"looking for the image '{reference}': without a registry in front, it is "
                        f"one of Docker Hub's. The lab's registry has '{full}': write it so."
                    )
        return reference

    def remove(self, *references: str) -> None:
        """Take images off the engine, as if it had never seen them: ``docker image rm``.

        With them go their other names in this lab's registry, and the containers that the lab
        started from them. Layers that other images have stay, and so do images that have names
        elsewhere; these are told.

        Raises:
            ImageError: another container was made from one of them.
        """
        engine = self.bench.engine
        names = [str(transfer.with_tag(self._in_full(each))) for each in references]
        with engine.doing(f"removing the images {', '.join(map(repr, names))}", ImageError):
            held = {str(image.id): image for name in names if (image := engine.image(name))}
            for container in run.remove_running(engine, of=held):
                feedback.command(["docker", "rm", "--force", container])
            tags = [tag for image in held.values() for tag in image.tags]
            names += [t for t in tags if t.startswith(f"{self.address}/") and t not in names]
            feedback.command(["docker", "image", "rm", *names])
            for name in names:
                if transfer.remove(engine, name):
                    feedback.say(f"Removed {name} from the engine.")
            for kept in filter(None, map(engine.image, held)):
                others = ", ".join(kept.tags or kept.attrs.get("RepoDigests") or [str(kept.id)])
                feedback.say(f"The engine keeps that image, which is also '{others}' there.")

    def digest(self, reference: str) -> str:
        """Return the digest that the registry serves for a reference."""
        return self.registry.digest(reference)

    def manifest(self, reference: str) -> Manifest:
        """Return an image's manifest, from the registry."""
        return self.registry.image(reference).manifest

    def config(self, reference: str) -> ImageConfig:
        """Return an image's config, from the registry."""
        return self.registry.image(reference).config

    def layers(self, reference: str) -> pd.DataFrame:
        """Return an image's layers, lowest first; see :func:`inspection.layers`."""
        return inspection.layers(self.registry.image(reference))

    def inspect(self, reference: str) -> Inspection:
        """Read what is inside an image, in this registry or another; see :func:`inspect`."""
        name = Reference.parse(reference)
        registry = self.registry
        if name.registry != self.address:
            registry = Registry(name.registry, platform=Platform.parse(self.platform))
        return inspection.inspect(registry, name, cache=self.bench.state.path(inspection.CACHE))

    def compare(self, **images: Inspection | str) -> Comparison:
        """Put images side by side, references or inspections: ``lab.compare(full=…, slim=…)``.

        Of two, its ``changes`` tell what changed from the first to the second.
        """
        found = {}
        for name, each in images.items():
            found[name] = self.inspect(each) if isinstance(each, str) else each
        return Comparison(found)

    def listening(self) -> AbstractContextManager[Wire]:
        """Keep what is said to the registry inside the ``with`` block; the lab's own words not."""
        return log.listening(self.bench.server)

    def pin(self, reference: str) -> Reference:
        """Return ``repository@sha256:…`` for what a tag names now."""
        return pin.pin(self.registry, reference)

    def pin_deployment(self, file: str | Path) -> None:
        """Rewrite a deployment file: each tag becomes the digest that the registry serves now."""
        pin.pin_deployment(Path(file), self.registry)

    def pin_dockerfile(self, file: str | Path) -> None:
        """Rewrite a Dockerfile's ``FROM`` lines: each tag gets the digest that it names now."""
        pin.pin_dockerfile(Path(file), self.registry)

    def deploy(self, file: str | Path) -> Deployment:
        """Run the services of a deployment file, as a server does: pull, then replace."""
        return deploy.deploy(self.bench.engine, self.bench.server, Path(file))

    def stop_registry(self) -> None:
        """Take the registry down; what it stores stays."""
        self.bench.server.stop()

    def start_registry(self) -> None:
        """Bring the registry back at the same address."""
        self.bench.server.start()

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

    def help(self, text: str | None) -> None:
        """Ask your class's teacher for help, in a few words; ``lab.help(None)`` takes it back."""
        self.coach.help(text)

    def map(self) -> Chart:
        """Return the journey map, with those steps lit whose exercises are passed."""
        return journey_map(self.coach.receipts.read().passed)

    def clean_up(self) -> None:
        """Remove the containers that run images of this lab; these stay: a return is quick."""
        for name in run.remove_running(self.bench.engine, address=self.address):
            feedback.command(["docker", "rm", "--force", name])

    @property
    def private(self) -> PrivateRegistry:
        """A second registry of the lab, with accounts, tokens and TLS; ``start()`` starts it."""
        return PrivateRegistry(engine=self.bench.engine, state=self.bench.state)

    def attack(self, id: str, target: str | Path | None = None) -> Happened:
        """Do one of the wrong things, for real, to this lab's own things; it says what it did.

        Args:
            id: ``secret``, ``base``, ``dependency``, ``push``, ``rest``, ``transit``, ``moved`` or
                ``run``.
            target: what to attack. ``secret`` and ``dependency``: a folder of this chapter, by
                default ``leak`` (made for it) and ``app``. ``base``: a tag, by default
                ``team/base:1`` (a copy of the slim base that is made for it). All others: a tag.

        Raises:
            AttackError: there is no such attack, or it is aimed at what is not this lab's.
        """
        return attacks.start(self.bench, id, target=target)

    def undo(self) -> None:
        """Put back whatever attacks have changed; what changed again since is left alone.

        Raises:
            AttackError: something could not be put back; it is tried again at the next undo.
        """
        journal.undo(self.bench)

    def deliver(self, script: str | Path, *, seed: int | None = None) -> PipelineRun:
        """Run a delivery script step by step, with a saboteur between the steps if there is a seed.

        Args:
            script: ``deliver.py`` or ``deliver.sh``; the folder ``app`` beside it is built.
            seed: of the sabotage; None for none.

        Raises:
            AttackError: the script can't be run, or is not in this chapter's folder.
        """
        faults = () if seed is None else saboteur(self.coach.receipts).choose(seed)
        run = delivery.run_pipeline(self.bench, Path(script), seed=seed, faults=faults)
        delivery.note_delivery(self.bench, run)
        return run

    @property
    def own_seed(self) -> int:
        """The learner's own seed: it plants one fault before the build and one after the push."""
        return saboteur(self.coach.receipts).own_seed

    @property
    def practice_seed(self) -> int:
        """A seed to try first: it does the same with two other faults."""
        return saboteur(self.coach.receipts).practice_seed

    def judge(self, run: PipelineRun) -> Judgement:
        """Say which faults a delivery survived, and what they left behind.

        Of a delivery with the learner's own seed, it says only how it ended: the rest is to be
        found out, until it has been.
        """
        found = "08-find" in self.coach.receipts.read().passed
        tell = found or run.seed != self.own_seed
        if not tell:
            feedback.say("With your own seed, what happened is for you to find: exercise 08-find.")
        return delivery.judge(run, tell=tell)

    def prove(self, script: str | Path, *faults: str) -> pd.DataFrame:
        """Deliver without a fault, then with each of some faults, by default of all, alone.

        Returns:
            A row a run: ``fault`` (empty for none), ``passed``, ``stopped_at``, ``happened``,
            ``last_line`` (of the step at which it stopped), ``seconds``. Where the script does not
            deliver without a fault, that is the only row.
        """
        return delivery.prove(self.bench, Path(script), *faults)

    def gate(self, file: str | Path, *, allowed: Sequence[str] = ()) -> bool:
        """Say whether a deployment file may pass, and list what it is refused for.

        Each image must fit one of the ``allowed`` patterns, such as ``localhost:41233/shop/*``.
        """
        return attacks.gate(Path(file), allowed=allowed)

    def exposure(self, reference: str, *, hardened: bool = False) -> pd.DataFrame:
        """Start a container of an image that has Python, and try from inside what it lets one do.

        A ``hardened`` one has no root, no capabilities, and a file system that is read-only.

        Returns:
            Columns ``question``, ``answer`` (in words) and ``open`` (whether it helps an attacker).
        """
        return attacks.exposure(self.bench, reference, hardened=hardened)

    def hashed_requirements(self, folder: str | Path) -> str:
        """Return an application's requirements with the digests of the wheels beside them."""
        folder = Path(folder)
        return forging.hashed_requirements(folder / "requirements.txt", folder / "wheels")
