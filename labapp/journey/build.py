"""Builds: a Dockerfile and a folder become an image.

``docker build`` does the work, whichever builder it has, and what it prints is read as steps. It
prints in three ways: the classic builder as ``Step 1/3 : FROM …``, Podman as ``[1/2] STEP 1/3: FROM
…``, and BuildKit, with ``BUILDKIT_PROGRESS=plain``, as ``#5 [1/3] FROM …``.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from labapp import feedback
from labapp.errors import BuildError, EngineLost, on_a_full_disk
from labapp.feedback import Bars
from labapp.journey.dockerfile import instructions
from labapp.machine.engine import START, Engine
from labapp.reference import Reference
from labapp.registry.http import FEWER, RATE_LIMIT

if TYPE_CHECKING:
    import pandas as pd

_LOG_LINES = 12
"""How many lines of a failed step's log, and of its instruction, a message shows."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_SENT = re.compile(r"(?:transferring context:|build context to Docker daemon) +([\d.]+)([kMG]?)B")
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_WRAPPINGS = re.compile(
    r"(?:(?i:error): |Error response from daemon: |failed to build: |failed to solve: |"
    r'(?:error )?building at STEP ".*?": (?:error )?(?:while running runtime: )?)+'
)
_PARSE_LINE = re.compile(r"parse error (?:on )?line (\d+)")

_CLASSIC_STEP = re.compile(r"(?:\[\d+/\d+\] )?(?:Step|STEP) (\d+)/\d+ ?: (.*)")
_CLASSIC_CACHED = re.compile(r" ?-{2,3}> Using cache")
_CLASSIC_NOISE = re.compile(
    r"^ ?-{2,3}> .*|Removing intermediate container [0-9a-f]+$|"
    r"^COMMIT( [\w./:-]+)?$|^[0-9a-f]{64}$|^Successfully (built|tagged) [\w./:-]+$"
)

_VERTEX = re.compile(r"#(\d+) (.*)")
_VERTEX_STEP = re.compile(r"\[(?:(\S+) +| +)?(\d+)/\d+\] (.*)")
_VERTEX_LOG = re.compile(r"\d+\.\d+ (.*)")
_VERTEX_END = re.compile(r"CACHED$|DONE ([\d.]+)s|ERROR: ")
_PLACE = re.compile(r"[^\s#>].*:(\d+)")


@dataclass(frozen=True)
class Step:
    """One step of a build, from number 1; its instruction is as the builder prints it."""

    number: int
    instruction: str
    cached: bool = False
    seconds: float = 0.0
    stage: str | None = None
    log: tuple[str, ...] = ()


@dataclass(frozen=True)
class Build:
    """What a build made, and how; ``context_bytes`` of the folder were sent to the builder."""

    reference: Reference
    steps: tuple[Step, ...]
    seconds: float
    context_bytes: int

    @property
    def table(self) -> pd.DataFrame:
        """A row a step: ``step``, ``instruction``, ``cached``, ``seconds`` (to the hundredth).

        A build of several stages has a column ``stage`` as well, after ``step``. ``cached`` is
        empty for the steps that only choose the base image: there is nothing to cache.
        """
        import pandas as pd  # A second that quick commands need not pay.

        rows = [(s.number, s.stage or "", s.instruction, s.cached, s.seconds) for s in self.steps]
        names = ["step", "stage", "instruction", "cached", "seconds"]
        table = pd.DataFrame(rows, columns=names).astype({"cached": object}).round({"seconds": 2})
        table.loc[table["step"].isin(choosing(self.steps)), "cached"] = ""
        return table if table["stage"].any() else table.drop(columns="stage")


def choosing(steps: Sequence[Step]) -> set[int]:
    """Return the numbers of the steps that only choose a base image: nothing to cache there."""
    froms = {step.number for step in steps if step.instruction.upper().startswith("FROM ")}
    return froms | {step.number for step in steps if froms and step.number < min(froms)}


def build(
    engine: Engine,
    context: Path,
    *,
    tag: str,
    dockerfile: Path | None = None,
    args: Mapping[str, str] | None = None,
    target: str | None = None,
    cache: bool = True,
    secrets: Mapping[str, Path] | None = None,
) -> Build:
    """Build an image with the engine's labels, which the printed command leaves out."""
    reference = Reference.parse(tag)
    if reference.digest:
        raise BuildError(
            f"building '{tag}': a digest comes out of a push. Leave out the '@' and what follows."
        )
    file = dockerfile if dockerfile is not None else context / "Dockerfile"
    try:
        text = file.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise BuildError(
            f"building '{tag}' from '{_shown(file)}': {error.strerror}. Name a Dockerfile."
        ) from error
    argv = [feedback.program(), "build", "-t", tag]
    if file != context / "Dockerfile":
        argv += ["-f", _shown(file)]
    for name, value in (args or {}).items():
        argv += ["--build-arg", f"{name}={value}"]
    argv += ["--target", target] if target else []
    argv += [] if cache else ["--no-cache"]
    argv += [f"--secret=id={id},src={_shown(source)}" for id, source in (secrets or {}).items()]
    feedback.command([*argv, _shown(context)])
    if engine.builder == "classic":
        # Else the containers of a build that fails stay, and nothing marks them as the lab's.
        argv += ["--force-rm"]
    argv += [f"--label={name}={value}" for name, value in engine.labels.items()]
    doing = f"building '{tag}' from '{_shown(file)}'"
    began = time.monotonic()
    with feedback.bars(f"building {tag}", unit="steps") as bars:
        told = _run(engine, [*argv, _shown(context)], text, bars, doing)
        bars.finish("steps", f"{sum(step.cached for step in told.steps)} from the cache")
    return Build(reference, tuple(told.steps), time.monotonic() - began, told.sent)


def _run(engine: Engine, argv: list[str], text: str, bars: Bars, doing: str) -> _Steps:
    """Let ``docker build`` build, and return what it told; ``text`` is the Dockerfile's."""
    classic = engine.builder == "classic"
    told: _ClassicSteps | _BuildKitSteps
    told = _ClassicSteps(text) if classic else _BuildKitSteps(text)
    try:
        process = subprocess.Popen(
            argv,
            env=engine.environment() | settings(engine),
            stdout=subprocess.PIPE,
            # BuildKit's progress goes there; of the classic builder, a line or two of complaint.
            stderr=subprocess.PIPE if classic else subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise BuildError(
            f"{doing}: starting '{argv[0]}': {error.strerror}. Is it installed, and in PATH?"
        ) from error
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                told.read(_COLOURS.sub("", line.rstrip("\r\n")))
                if now := told.running:
                    bars.update("steps", len(told.steps), len(told.written), now.instruction[:50])
        except BaseException:
            process.terminate()
            raise
        complaint = (process.stderr.read() if process.stderr else "").strip().rpartition("\n")[2]
    told.end()
    if process.returncode == 0:
        return told
    if not engine.is_alive():
        raise EngineLost(f"{doing}: the engine at '{engine.host}' has stopped. Run {START}.")
    cause = told.error or complaint or f"docker build ended with status {process.returncode}"
    raise _failure(doing, told, text, cause, context=argv[-1])


def settings(engine: Engine) -> dict[str, str]:
    """Return the variables that make ``docker build`` tell its steps, and push no attestation."""
    if engine.builder == "classic":
        return {"DOCKER_BUILDKIT": "0"}
    return {
        "DOCKER_BUILDKIT": "1",
        "BUILDKIT_PROGRESS": "plain",
        # An attestation would make the tag name an index.
        "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
    }


class _Steps:
    """What a builder tells, line by line; the steps are in order once it has ended."""

    def __init__(self, text: str) -> None:
        self.written = instructions(text)
        froms = ([w.text for w in each.words] for each in self.written if each.keyword == "FROM")
        self.stages = [w[-1] if len(w) > 2 and w[-2].upper() == "AS" else None for w in froms]
        self.sent = 0  # bytes of the context
        self.steps: list[Step] = []
        self.running: Step | None = None
        self.failed: Step | None = None
        self.error = ""
        self.line: int | None = None


class _ClassicSteps(_Steps):
    """Reads the classic builder, and Podman; a step that nobody wrote, for labels, is not shown.

    Podman counts the steps of each stage, and shows neither what is before the first one nor the
    stages that nothing needs.
    """

    _began, _number, _next = 0.0, 0, 0

    def read(self, line: str) -> None:
        step = _CLASSIC_STEP.match(line)
        keyword = step[2].partition(" ")[0].upper() if step else ""
        # A program may print "Step 9/9 : " too.
        if step and int(step[1]) in (self._number + 1, 1 if keyword == "FROM" else 0):
            self.end()
            self._number = int(step[1])
            left = enumerate(self.written[self._next :], start=self._next)
            at = next((at for at, each in left if each.keyword == keyword), None)
            if at is not None:
                self._next, self.line = at + 1, self.written[at].line
                froms = [each.keyword for each in self.written[: at + 1]].count("FROM")
                stage = self.stages[froms - 1] if froms else None
                self.running = Step(len(self.steps) + 1, step[2].strip(), stage=stage)
                self._began = time.monotonic()
        elif self.running is None:
            self.sent = _sent(line) or self.sent
        elif _CLASSIC_CACHED.match(line):
            self.running = replace(self.running, cached=True)
        # What a program printed last may have no line end.
        elif line := _CLASSIC_NOISE.sub("", line):
            self.running = replace(self.running, log=(*self.running.log, line))

    def end(self) -> None:
        if self.running is not None:
            # Should the build have failed, then in the step that was the last to begin.
            self.failed = replace(self.running, seconds=time.monotonic() - self._began)
            self.steps.append(self.failed)
        self.running = None


class _BuildKitSteps(_Steps):
    """Reads BuildKit, which runs stages side by side, and counts each one's steps that act."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open: dict[str, Step] = {}
        self._keys: set[str] = set()

    def read(self, line: str) -> None:
        if vertex := _VERTEX.match(line):
            self._read_vertex(vertex[1], vertex[2].rstrip())
            self.running = next(reversed(self._open.values()), None)
        elif place := _PLACE.fullmatch(line):
            self.line = int(place[1])
        elif line.startswith("ERROR: "):
            self.error = line

    def end(self) -> None:
        order = {f"stage-{number}": number for number in range(len(self.stages))}
        order |= {name: number for number, name in enumerate(self.stages) if name is not None}
        self.steps.sort(key=lambda step: (order.get(step.stage or "", len(order)), step.number))
        self.steps = [
            replace(step, number=number, stage=step.stage if step.stage in self.stages else None)
            for number, step in enumerate(self.steps, start=1)
        ]

    def _read_vertex(self, key: str, text: str) -> None:
        header = _VERTEX_STEP.fullmatch(text)
        step = self._open.get(key)
        if header and key not in self._keys:
            self._keys.add(key)
            self._open[key] = Step(int(header[2]), header[3], stage=header[1])
        elif sent := _sent(text):
            self.sent = max(self.sent, sent)
        elif step is None or header:
            return
        elif printed := _VERTEX_LOG.fullmatch(text):
            self._open[key] = replace(step, log=(*step.log, printed[1]))
        elif ended := _VERTEX_END.match(text):
            seconds, failed = float(ended[1] or 0), text.startswith("ERROR")
            self.steps.append(replace(step, cached=text == "CACHED", seconds=seconds))
            self.failed = self.steps[-1] if failed else self.failed
            del self._open[key]


def _sent(line: str) -> int:
    """Return how many bytes of context a line tells of; 0 if of none."""
    found = _SENT.search(line)
    return round(float(found[1]) * _UNITS[found[2]]) if found else 0


def _failure(doing: str, told: _Steps, text: str, cause: str, *, context: str) -> BuildError:
    """Return the error of a failed build, which quotes the Dockerfile and the log."""
    cause = _WRAPPINGS.sub("", cause, count=1).partition(" &imagebuilder.Step{")[0].rstrip(".")
    line, log = told.line, told.failed.log[-_LOG_LINES:] if told.failed else ()
    if unread := _PARSE_LINE.search(cause):
        line = int(unread[1])
    elif line is None and told.failed:  # BuildKit of old names no line.
        said = told.failed.instruction.split()
        same = [w for w in told.written if [w.keyword, *(word.text for word in w.words)] == said]
        line = same[0].line if same else None
    parts = [f"{doing}: {f'line {line}: ' if line else ''}{cause}."]
    keyword, heredoc = "", False
    for guilty in told.written:
        if line is not None and guilty.line <= line <= guilty.last_line:
            keyword, heredoc = guilty.keyword, guilty.line < line
            quoted = text.split("\n")[guilty.line - 1 : guilty.last_line][:_LOG_LINES]
            numbered = enumerate(quoted, start=guilty.line)
            parts += [f"  {number:>3} | {each}".rstrip() for number, each in numbered]
    if log:
        parts += ["Its log ends:", *(f"      {each}" for each in log)]
    if RATE_LIMIT.search(cause):
        parts += [f"{FEWER}."]
    elif "connection refused" in cause:
        parts += [f"Does that registry run? {START} starts the lab's own."]
    elif full := on_a_full_disk([cause, log]):
        parts += [full.strip()]
    elif "requires BuildKit" in cause or (unread and heredoc):
        parts += ["This engine has the classic builder only; write the line without that."]
    elif keyword == "FROM" and "@sha256:" in cause:
        parts += [
            "Does the registry serve that digest? An image ID is none; 'lab.digest' tells it."
        ]
    elif keyword in {"COPY", "ADD"} and not unread:
        if not (is_from_stage := "--from=" in "".join(parts[1:])):
            parts += [f"Paths count from '{context}'. Does .dockerignore leave the file out?"]
        if is_from_stage or len(told.stages) > 1:
            names = ", ".join(f"'{name}'" for name in told.stages if name) or "none has one"
            parts += [f"What another stage has takes '--from=' and its name: {names}."]
    elif keyword == "FROM" and not unread:
        parts += [
            "FROM sees only the ARGs above the first FROM. By such an ARG, the lab puts in its own "
            "copy of a public Python image."
        ]
    else:
        parts += ["Mend the Dockerfile there, or what it names, and build again."]
    return BuildError("\n".join(parts), log=log, line=line)


def _shown(path: Path) -> str:
    """Return a path as one would type it here."""
    whole, here = path.absolute(), Path.cwd()
    return whole.relative_to(here).as_posix() if whole.is_relative_to(here) else str(path)
