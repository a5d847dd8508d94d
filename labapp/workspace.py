"""A chapter's work folder: copies of the application and its Dockerfiles, to change at will."""

from __future__ import annotations

import shutil
from pathlib import Path

from labapp.bench import Bench
from labapp.errors import ExerciseError


def copy_application(
    bench: Bench, *, dockerfile: str | None = None, folder: str = "app", fresh: bool = False
) -> Path:
    """Return a chapter's own copy of the application's source; one that is there is kept.

    Args:
        bench: whose work folder it goes to.
        dockerfile: which of the lab's Dockerfiles goes with it, as ``Dockerfile``; by default none.
        folder: the copy's name, for a chapter that needs more than one.
        fresh: throw away the changes of an earlier visit and copy anew.

    Raises:
        ExerciseError: the lab has no such Dockerfile.
    """
    copy = bench.work / folder
    if fresh and copy.exists():
        shutil.rmtree(copy)
    if not copy.exists():
        shutil.copytree(bench.application, copy)
    if dockerfile is not None and not (copy / "Dockerfile").exists():
        copy_dockerfile(bench, dockerfile, copy / "Dockerfile")
    return copy


def copy_dockerfile(bench: Bench, name: str, target: Path) -> Path:
    """Copy one of the lab's Dockerfiles, and return where it is.

    Args:
        bench: which lab.
        name: ``first``, ``full``, ``slim`` or ``multistage``.
        target: the file to write; what was there is replaced.

    Raises:
        ExerciseError: the lab has no such Dockerfile; the message lists those that it has.
    """
    known = {file.stem: file for file in bench.application.parent.glob("*.Dockerfile")}
    if name not in known:
        raise ExerciseError(
            f"looking for the Dockerfile '{name}': the lab has {', '.join(sorted(known))}."
        )
    return Path(shutil.copy(known[name], target))
