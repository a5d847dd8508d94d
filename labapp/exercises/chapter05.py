"""Chapter 05, Multi-stage builds: the exercises."""

from __future__ import annotations

from labapp.bench import Bench
from labapp.exercises import evidence, inside
from labapp.exercises.exercise import Exercise, Verdict, correct, not_yet, wrong


def _check_two(bench: Bench, answer: object) -> Verdict:
    held = evidence.image(bench, "shop/web", "two")
    if held is None:
        return not_yet("The registry has no 'shop/web:two' yet.")
    found = inside.compilers(bench, held)
    if found:
        return wrong(
            f"A layer of 'shop/web:two' still has a compiler: {found[0]}. Which base does the last "
            "stage stand on?"
        )
    problem = inside.judge_answers(bench, held)
    if problem is not None:
        return wrong(f"No compiler ships. But {problem}")
    return correct(
        "The compiler did its work, and stayed at home.", evidence={"image": str(held.pinned)}
    )


def _check_target(bench: Bench, answer: object) -> Verdict:
    held = evidence.image(bench, "shop/workshop", "1")
    if held is None:
        return not_yet("The registry has no 'shop/workshop:1' yet.")
    if not inside.compilers(bench, held):
        return wrong(
            "'shop/workshop:1' has no compiler. It looks like the last stage; the first is wanted."
        )
    paths = set(inside.contents(bench, held).files["path"])
    if "/src/shop/_prices.c" not in paths:
        return wrong("'shop/workshop:1' has a compiler, but no source in '/src/shop'.")
    built = [path for path in paths if path.startswith("/opt/venv/") and "/shop/_prices." in path]
    if not any(path.endswith(".so") for path in built):
        return wrong(
            "'shop/workshop:1' has compiler and source, but the shop was not built in '/opt/venv'."
        )
    return correct(
        "Compiler, source and the built shop: all that a debugging session needs.",
        evidence={"image": str(held.pinned)},
    )


def _check_mine(bench: Bench, answer: object) -> Verdict:
    held = evidence.image(bench, "shop/web", "mine")
    if held is None:
        return not_yet("The registry has no 'shop/web:mine' yet.")
    base = bench.registry.image(bench.base("python:3.13-slim")).manifest.download_bytes
    return inside.judge_small(bench, held, limit=base)


EXERCISES = (
    Exercise(
        id="05-two",
        check=_check_two,
        hints=(
            "Name the first stage: `FROM ${BASE} AS build`. Below its last `RUN`, start the second "
            "one: `FROM ${SLIM}`.",
            "Only `/opt/venv` must come over: `COPY --from=build /opt/venv /opt/venv`. `ENV PATH`, "
            "`USER` and `CMD` belong to the second stage.",
        ),
        solution='''
text = (app / "Dockerfile").read_text()
text = text.replace("ARG BASE=", "ARG SLIM=python:3.13-slim\\nARG BASE=", 1)
text = text.replace("FROM ${BASE}", "FROM ${BASE} AS build", 1)
text = text.replace("WORKDIR /\\n", """FROM ${SLIM}
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
""")
(app / "Dockerfile").write_text(text)
lab.build(app, tag=f"{web}:two")
lab.push(f"{web}:two")
''',
        why="The second stage starts from the slim base, and gets one folder of the first.",
    ),
    Exercise(
        id="05-target",
        check=_check_target,
        hints=(
            "Look at the cell that built the stage `build` alone.",
            "`lab.build(app, tag=…, dockerfile=dockerfile, target='build')`, and a push.",
        ),
        solution="""
workshop = f"{lab.address}/shop/workshop:1"
lab.build(app, tag=workshop, dockerfile=dockerfile, target="build")
lab.push(workshop)
""",
        why="`--target` stops at a stage. The same Dockerfile makes the workshop and the product.",
    ),
    Exercise(
        id="05-mine",
        check=_check_mine,
        hints=(
            "The limit is below the slim base, so the last stage can't stand on it. It must start "
            "`FROM scratch`, and copy in what runs.",
            "`lab.dockerfile('minimal')` is such a Dockerfile. Build it as `shop/web:mine`, push "
            "it, and then see what else the shop never opens.",
        ),
        solution="""
lab.build(app, tag=f"{web}:mine", dockerfile=lab.dockerfile("minimal"))
lab.push(f"{web}:mine")
""",
        why="What the shop never opens need not be there: most of a base image.",
    ),
)
