"""Chapter 01, Build: the checks."""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path

from labapp.bench import Bench
from labapp.course import checks
from labapp.course.exercises import NotYet, Verdict, Wrong, correct
from labapp.errors import ImageError
from labapp.registry.manifests import digest_of

_UNWANTED = {"secrets.env", "backup.sql"}
_PROBE = """
import importlib.metadata, json, pathlib, sys
import shop.app
installed = {}
for name in sys.argv[1:]:
    files = importlib.metadata.distribution(name).files
    record = next(file for file in files if file.name == "RECORD")
    installed[name] = record.locate().stat().st_mtime_ns
print(json.dumps([installed, pathlib.Path(shop.app.__file__).read_text()]))
"""
"""Run in an image: when each requirement was installed, and the source as it arrived."""


def check_01_cache(bench: Bench, answer: object) -> Verdict:
    """Does a change in the source leave the requirements as they were installed before?"""
    app = bench.work / "app"
    if not checks.on_engine(bench, "shop/web:cached"):
        raise NotYet("The engine has no image 'shop/web:cached' yet.")
    if not (app / "Dockerfile").is_file():
        raise Wrong(f"There is no 'Dockerfile' in '{app}'. Run the cells above to get it back.")
    # Another change at each check, so that the cache does not know it from the last one.
    mark = f"changed-by-the-check-{secrets.token_hex(8)}"

    def change(copy: Path) -> None:
        source = copy / "shop" / "app.py"
        source.write_text(f"{source.read_text(encoding='utf-8')}\n# {mark}\n", encoding="utf-8")

    # The first build stays while the second one is made, and so does its cache.
    with checks.trial(bench, app) as tag:
        before, _ = _asked(bench, tag)
        with checks.trial(bench, app, change):
            after, text = _asked(bench, tag)
    if after != before:
        raise Wrong(
            "After a change in 'shop/app.py' the requirements were installed again. Which step "
            "above them takes in the source? Everything below a step that changed runs again."
        )
    if mark not in text:
        raise Wrong(
            "The change in 'shop/app.py' did not reach the image. Is the source still copied "
            "and installed, below the requirements?"
        )
    return correct(
        "A change in the source installs the shop again, and the requirements don't.",
        dockerfile=digest_of((app / "Dockerfile").read_bytes()),
    )


def _asked(bench: Bench, tag: str) -> tuple[dict[str, int], str]:
    """Ask an image when each requirement was installed, and for its source."""
    text = (bench.application / "requirements.txt").read_text(encoding="utf-8")
    names = re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)
    try:
        printed = checks.run_once(bench, tag, ["python3", "-c", _PROBE, *names])
    except ImageError as error:
        raise Wrong(
            f"Your Dockerfile makes no image of the shop and its 'requirements.txt': {error}"
        ) from error
    installed, source = json.loads(printed)
    return installed, source


def check_01_context(bench: Bench, answer: object) -> Verdict:
    """Do neither the image nor the build context have the two files?"""
    app = bench.work / "app"
    held = checks.pushed(bench, "shop/web:clean")
    files = sorted({path for path, _ in checks.added(bench, held)})
    if inside := [path for path in files if path.rpartition("/")[2] in _UNWANTED]:
        raise Wrong(f"Whoever pulls 'shop/web:clean' gets '{inside[0]}': it is in a layer.")
    if not any(path.endswith("/shop/app.py") for path in files):
        raise Wrong("'shop/web:clean' does not hold the shop's source at all. Was it built here?")
    if not all((app / name).exists() for name in _UNWANTED):
        raise Wrong(
            f"The image is clean because files are gone from '{app.name}/'. They must stay on "
            "your disk: you need them, the image doesn't. Run the cell that made them again."
        )
    if sent := sorted(_context_files(app, bench.engine.builder) & _UNWANTED):
        raise Wrong(
            f"The image is clean, but '{sent[0]}' still travels to the engine with each build. "
            "Which file says what stays out of the context?"
        )
    return correct(
        "Neither file travels to the engine, and neither is in the image.", image=held.pinned
    )


def _context_files(folder: Path, builder: str) -> set[str]:
    """Return what a build of a folder is sent; buildx prefers a file named as its Dockerfile is.

    Where there are several, it is the one that keeps out most: any Dockerfile may have been taken.
    """
    from docker.utils.build import exclude_paths

    beside = sorted(folder.glob("?*.dockerignore")) if builder != "classic" else []
    found = []
    for ignore in beside or [folder / ".dockerignore"]:
        text = ignore.read_text(encoding="utf-8-sig", errors="replace") if ignore.is_file() else ""
        patterns = [each.strip() for each in text.splitlines() if each.strip() and each[0] != "#"]
        found.append({Path(each).as_posix() for each in exclude_paths(str(folder), patterns)})
    return min(found, key=len)
