"""What builders print, read as steps; the build context, written as a tar file."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from labapp.images.build_context import write_context
from labapp.images.build_steps import BuildxSteps, ClassicSteps
from labapp.images.dockerfile import instructions


def _classic(*texts: str | dict[str, Any], total: int = 9) -> ClassicSteps:
    steps = ClassicSteps(instructions=total)
    for second, text in enumerate(texts):
        event = text if isinstance(text, dict) else {"stream": text}
        steps.read(event, at=float(second))
    steps.end(at=float(len(texts)))
    return steps


def test_classic_steps() -> None:
    steps = _classic(
        "Step 1/5 : ARG BASE=a:1",
        "\n",
        "Step 2/5 : FROM ${BASE} AS build",
        " ---> 629db69c1e96\n",
        "Step 3/5 : RUN make &&     make test",
        " ---> Running in 66e34831a6f0\n",
        "one\ntw",
        "o\n",
        "\x1b[91mwarning\n\x1b[0m",
        "Removing intermediate container 66e34831a6f0\n",
        " ---> 80de3dc94ca9\n",
        {"aux": {"ID": "sha256:1"}},
        "Step 4/5 : FROM scratch",
        "Step 5/5 : COPY --from=build /x /x",
        " ---> Using cache\n",
        {"aux": {"ID": "sha256:2"}},
        "Successfully built 2\n",
        "Successfully tagged shop/web:1\n",
    )
    assert [step.number for step in steps.done] == [1, 2, 3, 4, 5]
    assert [step.stage for step in steps.done] == [None, "build", "build", None, None]
    assert [step.cached for step in steps.done] == [False, False, False, False, True]
    assert [step.seconds for step in steps.done] == [2, 2, 8, 1, 5]
    assert [step.log for step in steps.done] == [(), (), ("one", "two", "warning"), (), ()]
    assert steps.done[2].instruction == "RUN make &&     make test"
    assert {step.total for step in steps.done} == {5}
    assert (steps.image_id, steps.error, steps.running) == ("sha256:2", "", None)


def test_classic_labels_are_no_step_of_the_dockerfile() -> None:
    steps = _classic("Step 1/2 : FROM a", "Step 2/2 : LABEL labapp.lab=1", " ---> x\n", total=1)
    assert [(step.number, step.total) for step in steps.done] == [(1, 1)]


def test_classic_program_that_prints_a_step() -> None:
    steps = _classic("Step 1/3 : FROM a", "Step 2/3 : RUN x", "Step 9/9 : fake\n", "Step 3/3 : B")
    assert [step.instruction for step in steps.done] == ["FROM a", "RUN x", "B"]
    assert steps.done[1].log == ("Step 9/9 : fake",)


def test_classic_pull_and_failure() -> None:
    steps = _classic(
        "Step 1/2 : FROM a:1",
        {"status": "Pulling from library/a", "id": "1"},
        {"status": "Downloading", "progressDetail": {"current": 1, "total": 2}, "id": "x"},
        "Step 2/2 : RUN false",
        {"errorDetail": {"code": 1, "message": "returned a non-zero code: 1"}, "error": "x"},
    )
    assert steps.done[0].log == ("Pulling from library/a",)
    assert steps.done[-1].instruction == "RUN false"
    assert steps.error == "returned a non-zero code: 1"


BUILDX = """\
#0 building with "default" instance using docker driver

#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 304B done
#1 DONE 0.0s

#2 [internal] load metadata for localhost:1/base/python:3.13-slim
#2 DONE 0.1s

#3 [internal] load build context
#3 transferring context: 2.51kB 0.1s done
#3 DONE 0.1s

#4 [build 1/3] FROM localhost:1/base/python:3.13-slim@sha256:0123
#4 CACHED

#5 [build 2/3] COPY a.txt /
#5 ...

#6 [stage-1 2/3] RUN echo hi
#6 0.123 hi
#6 0.200   there
#6 DONE 0.4s

#5 [build 2/3] COPY a.txt /
#5 DONE 0.2s

#7 [build 3/3] RUN make
#7 0.101 making
#7 DONE 1.5s

#8 [stage-1 3/3] COPY --from=build /a.txt /b.txt
#8 DONE 0.1s

#9 exporting to image
#9 exporting layers 0.0s done
#9 writing image sha256:4567 done
#9 DONE 0.0s
"""


def test_buildx_steps() -> None:
    steps = BuildxSteps()
    for line in BUILDX.splitlines(keepends=True):
        steps.read(line)
    done = steps.done(["build", None])
    assert [(step.number, step.total) for step in done] == [(n, 6) for n in range(1, 6)]
    assert [step.stage for step in done] == ["build", "build", "build", None, None]
    assert [step.instruction.split()[0] for step in done] == ["FROM", "COPY", "RUN", "RUN", "COPY"]
    assert [step.cached for step in done] == [True, False, False, False, False]
    assert [step.seconds for step in done] == [0, 0.2, 1.5, 0.4, 0.1]
    assert done[3].log == ("hi", "  there")
    assert (steps.context_bytes, steps.error, steps.running) == (2510, "", None)


BUILDX_FAILURE = """\
#4 [1/3] FROM localhost:1/base/python:3.13-slim
#4 DONE 0.0s

#5 [2/3] RUN echo one &&     exit 3
#5 0.152 one
#5 ERROR: process "/bin/sh -c echo one &&     exit 3" did not complete successfully: exit code: 3
------
 > [2/3] RUN echo one &&     exit 3:
0.152 one
------
work/run.Dockerfile:7
--------------------
   6 |
   7 | >>> RUN echo one && \\
   8 | >>>     exit 3
   9 |
--------------------
ERROR: failed to solve: process "/bin/sh -c echo one &&     exit 3" did not complete: exit code: 3
"""


def test_buildx_failure() -> None:
    steps = BuildxSteps()
    for line in BUILDX_FAILURE.splitlines(keepends=True):
        steps.read(line)
    assert steps.failed is not None
    assert steps.failed.log == ("one",)
    assert steps.line == 7
    assert steps.error.startswith('process "/bin/sh')


def test_instructions_of_a_dockerfile() -> None:
    text = (
        "# syntax=docker/dockerfile:1\nARG A=1\n\nfrom \\\n  # why\n  x AS y\n"
        "RUN a \\\\\nRUN <<EOF cat\nFROM no\nEOF\nCMD [\"x\"]"
    )  # fmt: skip
    found = [(i.keyword, i.line, i.last_line) for i in instructions(text)]
    assert found == [
        ("ARG", 2, 2),
        ("FROM", 4, 6),
        ("RUN", 7, 7),
        ("RUN", 8, 10),
        ("CMD", 11, 11),
    ]


def _names(archive: io.BytesIO) -> list[str]:
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        return sorted(tar.getnames())


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    for name in ("a.py", "b.pyc", "keep/c.pyc", "secret.env", "deep/x/y.txt", "Dockerfile"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def test_context_without_ignore_file(context: Path) -> None:
    archive = io.BytesIO()
    assert write_context(archive, context, context / "Dockerfile") == "Dockerfile"
    assert _names(archive) == [
        "Dockerfile", "a.py", "b.pyc", "deep", "deep/x", "deep/x/y.txt", "keep", "keep/c.pyc",
        "secret.env",
    ]  # fmt: skip


def test_context_honours_the_ignore_file(context: Path) -> None:
    ignore = "\ufeff# comment\n\n**/*.pyc\n!keep/c.pyc\nsecret.env\n/deep\nDockerfile\n"
    (context / ".dockerignore").write_text(ignore, encoding="utf-8")
    archive = io.BytesIO()
    write_context(archive, context, context / "Dockerfile")
    assert _names(archive) == [".dockerignore", "Dockerfile", "a.py", "keep", "keep/c.pyc"]


def test_dockerfile_outside_of_the_context(context: Path, tmp_path: Path) -> None:
    (tmp_path / "other.Dockerfile").write_text("FROM scratch\n")
    archive = io.BytesIO()
    name = write_context(archive, context, tmp_path / "other.Dockerfile")
    assert name in _names(archive)
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        extra = tar.extractfile(".dockerignore")
        assert extra is not None
        # The engine drops both again, so that a COPY of everything does not see them.
        assert extra.read().decode().split() == [".dockerignore", name]


def test_context_belongs_to_root(context: Path) -> None:
    if hasattr(os, "getuid") and os.getuid() == 0:
        os.chown(context / "a.py", 1000, 1000)
    archive = io.BytesIO()
    write_context(archive, context, context / "Dockerfile")
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        assert {(m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, "", "")}
