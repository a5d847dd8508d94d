"""The steps of a build, read from what the builder prints while it works.

Sources: the event stream of the engine's build API (``POST /build``), and the output of
``docker buildx build --progress=plain``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

_CLASSIC_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)", re.DOTALL)
_CLASSIC_NOISE = re.compile(
    r" ---> |Removing intermediate container |Successfully (built|tagged) [\w./:-]+\s*$"
)
_STAGE_NAME = re.compile(r"FROM\s.*\sAS\s+(\S+)\s*$", re.IGNORECASE | re.DOTALL)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

_BUILDX_LINE = re.compile(r"#(\d+) (.*)")
_BUILDX_STEP = re.compile(r"\[(?:(\S+) +)?(\d+)/(\d+)\] (.*)")
_BUILDX_SENT = re.compile(r"transferring context: ([\d.]+)([kMG]?)B")
_BUILDX_TIME = re.compile(r"(\d+\.\d+) (.*)")
_BUILDX_PLACE = re.compile(r"[^\s#>].*:(\d+)")
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True)
class Step:
    """One step of a build.

    Attributes:
        number: from 1, in the order of the Dockerfile.
        total: how many steps the build has.
        instruction: as the builder prints it.
        cached: whether its result came from the build cache.
        seconds: how long it took.
        stage: the name of its stage, where the Dockerfile gives it one.
        log: the lines that it printed.
    """

    number: int
    total: int
    instruction: str
    cached: bool = False
    seconds: float = 0.0
    stage: str | None = None
    log: tuple[str, ...] = ()


def choosing(steps: Sequence[Step]) -> set[int]:
    """Return the numbers of the steps that only choose a base image: nothing to cache there."""
    keywords = [step.instruction.split(" ", 1)[0].upper() for step in steps]
    first = keywords.index("FROM") if "FROM" in keywords else 0
    return {
        step.number
        for place, (step, keyword) in enumerate(zip(steps, keywords, strict=True))
        if keyword == "FROM" or place < first
    }


@dataclass
class ClassicSteps:
    """Reads the events of the engine's build API.

    Attributes:
        instructions: how many the Dockerfile has. Labels given to the build come as one step
            more, which is not shown, since nobody wrote it.
        done: the steps that ended.
        running: the step that runs just now.
        image_id: of the built image.
        error: what the builder said when it gave up.
    """

    instructions: int
    done: list[Step] = field(default_factory=list)
    running: Step | None = None
    image_id: str = ""
    error: str = ""
    _stage: str | None = None
    _printed: str = ""
    _began: float = 0.0

    def read(self, event: Mapping[str, Any], *, at: float) -> None:
        """Take the next event.

        Args:
            event: as the engine sent it.
            at: the moment it came, in seconds of any steady clock.
        """
        if "error" in event:
            detail = event.get("errorDetail") or {}
            self.error = str(detail.get("message") or event["error"])
        elif "aux" in event:
            self.image_id = (event["aux"] or {}).get("ID", self.image_id)
        elif text := event.get("stream"):
            self._read_text(str(text), at)
        elif event.get("status") and not event.get("progressDetail"):
            # The engine pulls a base image that it does not have.
            self._printed += f"{event['status']}\n"

    def end(self, *, at: float) -> None:
        """Take the end of the stream."""
        if self.running is not None:
            log = tuple(line for line in _COLOURS.sub("", self._printed).splitlines() if line)
            self.done.append(replace(self.running, seconds=at - self._began, log=log))
        self.running, self._printed = None, ""

    def _read_text(self, text: str, at: float) -> None:
        step = _CLASSIC_STEP.match(text)
        last = self.running or (self.done[-1] if self.done else None)
        # A program may print "Step 9/9 : " too.
        if step and int(step[1]) == (last.number if last else 0) + 1:
            self.end(at=at)
            self._began = at
            instruction = step[3].strip()
            if instruction.upper().startswith("FROM "):
                name = _STAGE_NAME.match(instruction)
                self._stage = name[1] if name else None
            if int(step[1]) <= self.instructions:
                total = min(int(step[2]), self.instructions)
                self.running = Step(int(step[1]), total, instruction, stage=self._stage)
        elif text.startswith(" ---> Using cache") and self.running is not None:
            self.running = replace(self.running, cached=True)
        elif not _CLASSIC_NOISE.match(text):
            self._printed += text


@dataclass
class BuildxSteps:
    """Reads the lines of ``docker buildx build --progress=plain``.

    Buildx counts the steps of each stage apart, runs stages side by side, and shows no step for
    an instruction that changes no file.

    Attributes:
        context_bytes: the size of the build context that was sent.
        line: the number of the Dockerfile line that failed, from 1.
        error: what the builder said when it gave up.
        failed: the step that made it give up.
    """

    context_bytes: int = 0
    line: int | None = None
    error: str = ""
    failed: Step | None = None
    _vertices: dict[str, Step] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)

    def read(self, line: str) -> None:
        """Take the next line."""
        line = _COLOURS.sub("", line.rstrip())
        vertex = _BUILDX_LINE.match(line)
        if vertex:
            self._read_vertex(vertex[1], vertex[2])
        elif place := _BUILDX_PLACE.fullmatch(line):
            self.line = int(place[1])
        elif line.startswith("ERROR: "):
            self.error = line.removeprefix("ERROR: ").removeprefix("failed to solve: ")

    @property
    def running(self) -> Step | None:
        """A step that has begun and not ended yet."""
        open_steps = [step for key, step in self._vertices.items() if key not in self._ended]
        return open_steps[-1] if open_steps else None

    @property
    def total(self) -> int:
        """How many steps there are, as far as it is known yet."""
        return sum({step.stage: step.total for step in self._vertices.values()}.values())

    @property
    def ended(self) -> int:
        """How many steps have ended."""
        return len(self._ended)

    def done(self, stages: list[str | None]) -> list[Step]:
        """Return the steps that ended, in the order of the Dockerfile and numbered through.

        Args:
            stages: the names of the Dockerfile's stages in order; None for one without a name.
        """
        names = {f"stage-{number}": number for number in range(len(stages))}
        names |= {name: number for number, name in enumerate(stages) if name is not None}

        def place(step: Step) -> tuple[int, int]:
            return names.get(step.stage or "", len(stages)), step.number

        steps = sorted((self._vertices[key] for key in self._ended), key=place)
        return [
            replace(
                step,
                number=number,
                total=self.total,
                stage=step.stage if step.stage in stages else None,
            )
            for number, step in enumerate(steps, start=1)
        ]

    def _read_vertex(self, key: str, text: str) -> None:
        step = self._vertices.get(key)
        header = _BUILDX_STEP.fullmatch(text)
        if header and step is None:
            self._vertices[key] = Step(int(header[2]), int(header[3]), header[4], stage=header[1])
        elif sent := _BUILDX_SENT.match(text):
            self.context_bytes = round(float(sent[1]) * _UNITS[sent[2]])
        elif step is None or header:
            return
        elif text == "CACHED":
            self._vertices[key] = replace(step, cached=True)
            self._ended.add(key)
        elif text.startswith("DONE "):
            self._vertices[key] = replace(step, seconds=float(text[5:].rstrip("s")))
            self._ended.add(key)
        elif text.startswith("ERROR: "):
            self.failed = step
            self._ended.add(key)
        elif printed := _BUILDX_TIME.fullmatch(text):
            self._vertices[key] = replace(step, log=(*step.log, printed[2]))
