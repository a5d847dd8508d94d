"""Builds: a Dockerfile and a folder become an image.

``docker buildx build`` builds where the engine's command line has it; elsewhere the classic builder
does, over the engine's API. The result is the same type.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import docker.errors
import pandas as pd

from labapp.engine import Engine
from labapp.errors import BuildError, EngineLost
from labapp.feedback import Bars, Feedback
from labapp.images.build_context import write_context
from labapp.images.build_steps import BuildxSteps, ClassicSteps, Step, choosing
from labapp.images.dockerfile import Instruction, instructions
from labapp.reference import Reference

LOG_LINES = 12
"""How many lines of a failed step's log, and of its instruction, a message shows."""

_PARSE_LINE = re.compile(r"parse error (?:on )?line (\d+)")


@dataclass(frozen=True)
class Build:
    """What a build made, and how.

    Attributes:
        reference: the image's name.
        image_id: what this engine calls the image; another engine calls it something else.
        steps: in the order of the Dockerfile.
        seconds: how long it took in all.
        context_bytes: how much of the folder was sent to the builder.
        builder: ``classic``, or ``buildx`` and its version.
    """

    reference: Reference
    image_id: str
    steps: tuple[Step, ...]
    seconds: float
    context_bytes: int
    builder: str

    @property
    def table(self) -> pd.DataFrame:
        """A row a step: ``step``, ``instruction``, ``cached``, ``seconds`` (to the hundredth).

        A build of several stages has a column ``stage`` as well, after ``step``. ``cached`` is
        empty for the steps that only choose the base image: there is nothing to cache.
        """
        bases = choosing(self.steps)
        rows = [
            (
                s.number,
                s.stage or "",
                s.instruction,
                "" if s.number in bases else s.cached,
                round(s.seconds, 2),
            )
            for s in self.steps
        ]
        table = pd.DataFrame(rows, columns=["step", "stage", "instruction", "cached", "seconds"])
        return table if table["stage"].any() else table.drop(columns="stage")


@dataclass(frozen=True)
class _Job:
    """What to build; ``text`` is the Dockerfile's, the other fields as in :func:`build`."""

    tag: str
    context: Path
    dockerfile: Path
    text: str
    args: dict[str, str]
    target: str | None
    cache: bool
    labels: dict[str, str]

    @property
    def doing(self) -> str:
        return f"building '{self.tag}' from '{_shown(self.dockerfile)}'"

    @property
    def argv(self) -> list[str]:
        """The options of ``docker build`` and the context, labels apart."""
        argv = ["-t", self.tag]
        if self.dockerfile != self.context / "Dockerfile":
            argv += ["-f", _shown(self.dockerfile)]
        for name, value in self.args.items():
            argv += ["--build-arg", f"{name}={value}"]
        if self.target is not None:
            argv += ["--target", self.target]
        if not self.cache:
            argv += ["--no-cache"]
        return [*argv, _shown(self.context)]


def build(
    engine: Engine,
    context: Path,
    *,
    tag: str,
    dockerfile: Path | None = None,
    args: Mapping[str, str] | None = None,
    target: str | None = None,
    cache: bool = True,
    labels: Mapping[str, str],
    feedback: Feedback,
) -> Build:
    """Build an image.

    Args:
        engine: where to build.
        context: the folder that the Dockerfile copies from; its ``.dockerignore`` is honoured.
        tag: the image's name, such as ``localhost:41233/shop/web:1.4``.
        dockerfile: the Dockerfile; by default the ``Dockerfile`` of the context.
        args: build arguments, for ``ARG``.
        target: the stage to build; by default the last one.
        cache: whether results of earlier builds may be used.
        labels: labels for the image, not shown in the command that is printed.
        feedback: where the command and the progress are told.

    Raises:
        InvalidReference: the tag is no reference.
        BuildError: the build failed; the message quotes the Dockerfile line and the log's end.
        EngineLost: the engine went away in mid-build.
    """
    reference = Reference.parse(tag)
    if reference.is_pinned:
        raise BuildError(
            f"building '{tag}': the digest comes out of a push, so a build can't be given one. "
            "Leave out the '@' and what follows it."
        )
    if not context.is_dir():
        raise BuildError(
            f"building '{tag}': there is no folder '{context}' for the build context. "
            "Name the folder that the Dockerfile copies from."
        )
    file = dockerfile if dockerfile is not None else context / "Dockerfile"
    try:
        text = file.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise BuildError(
            f"building '{tag}': reading the Dockerfile '{_shown(file)}': {error.strerror}. "
            "Name the right file, or write one."
        ) from error
    job = _Job(tag, context, file, text, dict(args or {}), target, cache, dict(labels))
    feedback.command(["docker", "build", *job.argv])
    run = _build_classic if engine.builder == "classic" else _build_buildx
    began = time.monotonic()
    with (
        feedback.bars(f"building {tag}", unit="steps") as bars,
        engine.doing(job.doing, BuildError),
    ):
        image_id, steps, sent = run(engine, job, bars)
        bars.finish("steps", f"{sum(step.cached for step in steps)} from the cache")
    seconds = time.monotonic() - began
    return Build(reference, image_id, tuple(steps), seconds, sent, engine.builder)


def _build_classic(engine: Engine, job: _Job, bars: Bars) -> tuple[str, list[Step], int]:
    steps = ClassicSteps(instructions=len(instructions(job.text)))
    with tempfile.TemporaryFile() as archive:
        name = write_context(archive, job.context, job.dockerfile)
        sent = archive.tell()
        archive.seek(0)
        try:
            events = engine.client.api.build(
                fileobj=archive,
                custom_context=True,
                dockerfile=name,
                tag=job.tag,
                buildargs=dict(job.args),
                target=job.target,
                nocache=not job.cache,
                labels=job.labels,
                rm=True,
                forcerm=True,
                decode=True,
            )
            for event in events:
                steps.read(event, at=time.monotonic())
                if now := steps.running:
                    bars.update("steps", now.number - 1, now.total, now.instruction[:50])
        except docker.errors.APIError as error:
            raise _failure(job, str(error.explanation or error)) from error
    steps.end(at=time.monotonic())
    if steps.error:
        raise _failure(job, steps.error, step=steps.done[-1] if steps.done else None)
    if not steps.image_id:
        raise _broken_off(engine, job)
    return steps.image_id, steps.done, sent


def _build_buildx(engine: Engine, job: _Job, bars: Bars) -> tuple[str, list[Step], int]:
    steps = BuildxSteps()
    argv = ["docker", "buildx", "build", "--progress=plain", "--provenance=false", "--load"]
    argv += [f"--label={name}={value}" for name, value in job.labels.items()]
    process = subprocess.Popen(
        [*argv, *job.argv],
        env=engine.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    with process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                steps.read(line)
                if now := steps.running:
                    bars.update("steps", steps.ended, steps.total, now.instruction[:50])
        except BaseException:
            process.terminate()
            raise
    if process.returncode and not engine.is_alive():
        raise _broken_off(engine, job)
    if process.returncode:
        cause = steps.error or f"buildx ended with status {process.returncode}"
        raise _failure(job, cause, step=steps.failed, line=steps.line)
    # Not what buildx calls it: that is the digest of the config, whatever the engine's store.
    image_id = str(engine.client.images.get(job.tag).id)
    stages = [_stage(step) for step in instructions(job.text) if step.keyword == "FROM"]
    return image_id, steps.done(stages), steps.context_bytes


def _stage(instruction: Instruction) -> str | None:
    words = [word.text for word in instruction.words]
    return words[-1] if len(words) > 2 and words[-2].upper() == "AS" else None


def _broken_off(engine: Engine, job: _Job) -> EngineLost:
    return EngineLost(
        f"{job.doing}: the engine at '{engine.host}' stopped before the build ended. "
        "Run 'python3 -m labapp start', then build again."
    )


def _failure(
    job: _Job, cause: str, *, step: Step | None = None, line: int | None = None
) -> BuildError:
    """Return the error of a failed build, which quotes the Dockerfile and the log."""
    found = instructions(job.text)
    parse_line = _PARSE_LINE.search(cause)
    if parse_line:
        line = int(parse_line[1])
    elif line is None and step is not None and step.number <= len(found):
        line = found[step.number - 1].line
    log = step.log if step is not None else ()
    parts = [f"{job.doing}: {f'line {line}: ' if line else ''}{cause.strip().rstrip('.')}."]
    guilty = next((each for each in found if line and each.line <= line <= each.last_line), None)
    if guilty is not None:
        lines = job.text.split("\n")[guilty.line - 1 : guilty.last_line][:LOG_LINES]
        parts += [f"  {guilty.line + n:>3} | {text}".rstrip() for n, text in enumerate(lines)]
    if log:
        parts += ["Its log ends:", *(f"      {text}" for text in log[-LOG_LINES:])]
    heredoc = guilty is not None and guilty.line != line and "<<" in guilty.text
    if "requires BuildKit" in cause or (parse_line and heredoc):
        parts.append("This engine has the classic builder only; write the line without that.")
    else:
        parts.append(_advice(job, guilty.keyword if guilty and not parse_line else ""))
    return BuildError("\n".join(parts), log=log[-LOG_LINES:], line=line)


def _advice(job: _Job, keyword: str) -> str:
    if keyword in {"COPY", "ADD"}:
        return (
            f"Paths count from the build context '{_shown(job.context)}'; "
            "see whether .dockerignore leaves the file out."
        )
    if keyword == "FROM":
        return "Check the image's name, and that its registry answers."
    if keyword == "RUN":
        return "Mend the line and build again; the steps above it come from the cache."
    return "Mend the Dockerfile and build again."


def _shown(path: Path) -> str:
    """Return a path as one would type it here."""
    whole, here = path.absolute(), Path.cwd()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(path)
