"""Chapter 01, Build: the exercises."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from docker.utils.build import exclude_paths

from labapp import images
from labapp.bench import Bench
from labapp.errors import BuildError, ImageError
from labapp.exercises import evidence
from labapp.exercises.exercise import Exercise, Verdict, correct, not_yet, wrong
from labapp.feedback import QuietFeedback
from labapp.images import builds
from labapp.images.build_steps import choosing

_MARK = "changed-by-the-check"
_SECRET, _BACKUP = "secrets.env", "backup.sql"


def _check_cache(bench: Bench, answer: object) -> Verdict:
    name = f"{bench.registry.address}/shop/web:cached"
    app = bench.work / "app"
    if not evidence.on_engine(bench, name):
        return not_yet(f"The engine has no image '{name}' yet.")
    if not (app / "Dockerfile").is_file():
        return wrong(f"There is no 'Dockerfile' in '{app}'. Run the cells above to get it back.")
    with tempfile.TemporaryDirectory() as temporary:
        # The check changes a copy of the source, builds it, and looks at what ran again.
        copy = Path(shutil.copytree(app, Path(temporary) / "app"))
        source = copy / "shop" / "app.py"
        source.write_text(source.read_text(encoding="utf-8") + f"\n# {_MARK}\n", encoding="utf-8")
        return _judge_rebuild(bench, copy)


def _judge_rebuild(bench: Bench, copy: Path) -> Verdict:
    tag = f"{bench.registry.address}/labapp/check:cache"
    quiet = QuietFeedback()
    labels = bench.state.labels
    try:
        build = builds.build(
            bench.engine,
            copy,
            tag=tag,
            dockerfile=copy / "Dockerfile",
            args=bench.build_arguments(copy / "Dockerfile"),
            labels=labels,
            feedback=quiet,
        )
        steps = [step for step in build.steps if "requirements.txt" in step.instruction]
        installs = [step for step in steps if "install" in step.instruction]
        if not installs:
            return wrong("No step of your Dockerfile installs 'requirements.txt' any more.")
        if not installs[-1].cached:
            bases = choosing(build.steps)
            first = next(s for s in build.steps if not s.cached and s.number not in bases)
            return wrong(
                f"After a change in 'shop/app.py' the requirements were installed again (step "
                f"{installs[-1].number}). The first step that missed the cache was "
                f"'{first.instruction}': everything below it runs again."
            )
        probe = "import pathlib, shop.app; print(pathlib.Path(shop.app.__file__).read_text())"
        try:
            text = images.run_once(
                bench.engine, tag, ["python3", "-c", probe], labels=labels, feedback=quiet
            )
        except ImageError as error:
            return wrong(f"The image builds quickly, but the shop does not start in it: {error}")
        if _MARK not in text:
            return wrong(
                "The change in 'shop/app.py' did not reach the image. Is the source still copied "
                "and installed, below the requirements?"
            )
    except BuildError as error:
        return wrong(f"Your Dockerfile does not build: {error}")
    finally:
        images.remove(bench.engine, tag)
    dockerfile = hashlib.sha256((copy / "Dockerfile").read_bytes()).hexdigest()
    return correct(
        "A change in the source installs the shop again, and the requirements don't.",
        evidence={"dockerfile": f"sha256:{dockerfile}"},
    )


def _check_context(bench: Bench, answer: object) -> Verdict:
    app = bench.work / "app"
    unwanted = [name for name in (_SECRET, _BACKUP) if (app / name).exists()]
    held = evidence.image(bench, "shop/web", "clean")
    if held is None:
        if evidence.on_engine(bench, f"{bench.registry.address}/shop/web:clean"):
            return wrong("'shop/web:clean' is on the engine, but not in the registry: push it.")
        return not_yet("The registry has no 'shop/web:clean' yet.")
    files = {path for path, _ in evidence.added(bench, held)}
    inside = sorted(path for path in files if path.endswith((f"/{_SECRET}", f"/{_BACKUP}")))
    if inside:
        return wrong(f"Whoever pulls 'shop/web:clean' gets '{inside[0]}': it is in a layer.")
    if not any(path.endswith("/shop/app.py") for path in files):
        return wrong("'shop/web:clean' does not hold the shop's source at all. Was it built here?")
    if len(unwanted) < 2:
        return wrong(
            f"The image is clean because files are gone from '{app.name}/'. They must stay on "
            "your disk: you need them, the image doesn't. Run the cell that made them again."
        )
    sent = _context_files(app) & set(unwanted)
    if sent:
        return wrong(
            f"The image is clean, but '{sorted(sent)[0]}' still travels to the engine with each "
            "build. Which file says what stays out of the context?"
        )
    return correct(
        "Neither file travels to the engine, and neither is in the image.",
        evidence={"image": str(held.pinned)},
    )


def _context_files(folder: Path) -> set[str]:
    ignore = folder / ".dockerignore"
    lines = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return {Path(path).as_posix() for path in exclude_paths(str(folder), patterns)}


EXERCISES = (
    Exercise(
        id="01-cache",
        check=_check_cache,
        hints=(
            "A step runs again when something that it reads has changed. What does "
            "`COPY . .` read?",
            "pip needs two things to install the requirements: `requirements.txt` and the folder "
            "`wheels`. Copy those first, install, and copy the rest afterwards.",
        ),
        solution='''
(app / "Dockerfile").write_text("""\\
ARG BASE=python:3.13
FROM ${BASE}
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS=/src/wheels
WORKDIR /src
RUN python3 -m venv --without-pip /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY wheels wheels
COPY requirements.txt .
RUN pip --python /opt/venv install -r requirements.txt
COPY . .
RUN pip --python /opt/venv install --no-deps .
WORKDIR /
USER 10001
CMD ["gunicorn", "--bind=0.0.0.0:8000", "--no-control-socket", "shop.app:app"]
""")
lab.build(app, tag=f"{lab.address}/shop/web:cached")
''',
        why="What seldom changes stands above what changes often. The source is copied last, so "
        "only the last install runs again.",
    ),
    Exercise(
        id="01-context",
        check=_check_context,
        hints=(
            "The engine never sees what the context leaves out.",
            "`.dockerignore` stands beside the Dockerfile and holds one pattern a line.",
        ),
        solution="""
(app / ".dockerignore").write_text("secrets.env\\nbackup.sql\\n__pycache__\\n")
lab.build(app, tag=f"{lab.address}/shop/web:clean")
lab.push(f"{lab.address}/shop/web:clean")
""",
        why="The files stay on your disk. They are not sent, so no `COPY` can pick them up.",
    ),
)
