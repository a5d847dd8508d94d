"""Chapter 04, Size and security: the exercises."""

from __future__ import annotations

import re

from labapp import images
from labapp.bench import Bench
from labapp.contents import Contents
from labapp.errors import RunError
from labapp.exercises import evidence, inside
from labapp.exercises.exercise import Exercise, Verdict, correct, not_yet, wrong
from labapp.feedback import QuietFeedback

_RATIO = 1.4
"""How many times the slim base's download the small image may have."""

_COMPILER = "gcc-"
"""How the name of the compiler's source package begins."""

_CVE = re.compile(r"CVE-\d{4}-\d{4,}")


def _check_unused(bench: Bench, answer: object) -> Verdict:
    if answer is ...:
        return not_yet("No answer yet: replace the ... with the name of a package.")
    held = evidence.image(bench, "shop/web", "full")
    if held is None:
        return not_yet("The registry has no 'shop/web:full'. Run the cells above first.")
    if not isinstance(answer, str):
        return wrong(f"The answer is of type {type(answer).__name__}. Expected: a name, as text.")
    name = answer.strip().partition(":")[0]
    contents = inside.contents(bench, held)
    packages = contents.packages[contents.packages["kind"] == "deb"]
    found = packages[packages["name"] == name]
    if found.empty:
        return wrong(f"'shop/web:full' has no Debian package '{name}'.")
    if str(found["source"].iloc[0]).startswith(_COMPILER):
        return wrong(f"'{name}' is made from the compiler's source. Which other one is largest?")
    used = _packages_in_memory(bench, contents)
    if name in used:
        return wrong(f"The running shop holds files of '{name}' in memory. It is no passenger.")
    size = int(found["unpacked_bytes"].iloc[0])
    others = packages[~packages["source"].str.startswith(_COMPILER)]
    larger = others[(others["unpacked_bytes"] > size) & ~others["name"].isin(used)]
    if not larger.empty:
        return wrong(
            f"'{name}' has {size:,} bytes, and the shop doesn't use it. But {len(larger)} unused "
            "ones are larger."
        )
    return correct(
        f"{size:,} bytes travel to every server, and nothing there opens them.",
        evidence={"image": str(held.pinned), "package": name},
    )


def _packages_in_memory(bench: Bench, contents: Contents) -> set[str]:
    """Return the packages of which a container of the image has a file in memory."""
    script = "import shop.app, gunicorn.app.wsgiapp; print(open('/proc/self/maps').read())"
    maps = images.run_once(
        bench.engine,
        contents.image.pinned,
        ["python3", "-c", script],
        labels=bench.state.labels,
        feedback=QuietFeedback(),
    )
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "/" in line}
    files = contents.files
    return set(files.loc[files["path"].isin(paths), "package"]) - {""}


def _check_cve(bench: Bench, answer: object) -> Verdict:
    if answer is ...:
        return not_yet("No answer yet: replace the ... with the number of a CVE.")
    full, slim = (evidence.image(bench, "shop/web", tag) for tag in ("full", "slim"))
    if full is None or slim is None:
        return not_yet("'shop/web:full' or 'shop/web:slim' is missing. Run the cells above first.")
    if not isinstance(answer, str) or not _CVE.fullmatch(answer.strip().upper()):
        return wrong(f"{str(answer)[:40]!r} is no CVE number. Expected: such as 'CVE-2025-12345'.")
    cve = answer.strip().upper()
    first, second = (inside.report(bench, held) for held in (full, slim))
    rows = first.rows[first.rows["cve"] == cve]
    if rows.empty:
        also = " 'slim' neither." if cve not in set(second.rows["cve"]) else ""
        return wrong(f"{cve} was not fixed in a package of 'full' since the release.{also}")
    if bool(rows["headers"].all()):
        return wrong(f"{cve} is in 'full' only in kernel headers: files that never run.")
    if cve in set(second.rows["cve"]):
        shared = ", ".join(sorted(set(second.rows.loc[second.rows["cve"] == cve, "package"])))
        return wrong(f"{cve} concerns 'slim', too: it has {shared}.")
    names = ", ".join(sorted(set(rows["package"])))
    return correct(
        f"{cve} is in {names}. 'full' had to be rebuilt, tested and deployed for it. For 'slim' "
        "there was nothing to do: it isn't there.",
        evidence={"image": str(full.pinned), "without": str(slim.pinned), "cve": cve},
    )


def _check_small(bench: Bench, answer: object) -> Verdict:
    held = evidence.image(bench, "shop/web", "small")
    if held is None:
        return not_yet("The registry has no 'shop/web:small' yet.")
    base = bench.registry.image(bench.base("python:3.13-slim")).manifest.download_bytes
    return inside.judge_small(bench, held, limit=int(_RATIO * base))


def _check_patch(bench: Bench, answer: object) -> Verdict:
    held = evidence.image(bench, "team/python", "patched")
    if held is None:
        return not_yet("The registry has no 'team/python:patched' yet.")
    if (inside.contents(bench, held).packages["kind"] == "deb").sum() == 0:
        return wrong(
            "'team/python:patched' lists no Debian package, so nothing tells whether fixes are "
            "missing. Removing the list is not a patch."
        )
    report = inside.report(bench, held)
    if report.missing:
        names = sorted(set(report.rows.loc[report.rows["state"] == "missing", "package"]))
        return wrong(
            f"'team/python:patched' still lacks {report.missing} fixes, in {', '.join(names[:4])}"
            f"{' and others' if len(names) > 4 else ''}."
        )
    try:
        said = images.run_once(
            bench.engine,
            held.pinned,
            ["python3", "-c", "print(6 * 7)"],
            labels=bench.state.labels,
            feedback=QuietFeedback(),
        )
    except RunError as error:
        return wrong(f"No fix is missing, but its Python doesn't run: {error}")
    if said.strip() != "42":
        return wrong(f"No fix is missing, but its Python can't count: it says {said[:40]!r}.")
    return correct(
        f"No fix is missing, as of {report.date:%Y-%m-%d}. Tomorrow, ask again.",
        evidence={"image": str(held.pinned), "fixes_of": f"{report.date:%Y-%m-%d}"},
    )


EXERCISES = (
    Exercise(
        id="04-unused",
        check=_check_unused,
        hints=(
            "Take the rows of `packages` whose `name` is not in `used`: "
            '`packages[~packages["name"].isin(used)]`.',
            "Leave out those whose `source` is `gcc-14`, and keep kind `deb`. The table is sorted "
            "already: the first row that is left is the one.",
        ),
        solution="""
unused = packages[~packages["name"].isin(used) & (packages["kind"] == "deb")]
unused = unused[~unused["source"].str.startswith("gcc-")]
answer = unused["name"].iloc[0]
""",
        why="It is there in case somebody builds something that needs it. The shop never will.",
    ),
    Exercise(
        id="04-cve",
        check=_check_cve,
        hints=(
            'Two sets: `set(full.report.rows["cve"])`, and the same of `slim`.',
            "Take the rows of `full` with `~rows['headers']`, and leave out what "
            "`rows['cve'].isin(slim.report.rows['cve'])` says.",
        ),
        solution="""
only_full = rows[~rows["headers"] & ~rows["cve"].isin(slim.report.rows["cve"])]
answer = only_full["cve"].iloc[0]
""",
        why="Each such CVE is a patch that the slim image never needed.",
    ),
    Exercise(
        id="04-small",
        check=_check_small,
        hints=(
            "The compiler is needed between `apt-get install` and the last `pip install`. Do all "
            "of it in one `RUN`, and remove the compiler before that `RUN` ends.",
            "`COPY` everything first. (It costs the cache of chapter 01; 05 has both.) Then one "
            "`RUN`: install gcc, both `pip install` lines, "
            "`apt-get purge -y --auto-remove gcc libc6-dev python3-dev`, remove the lists.",
        ),
        solution='''
install = """RUN apt-get update \\\\
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \\\\
    && pip --python /opt/venv install --no-cache-dir -r requirements.txt \\\\
    && pip --python /opt/venv install --no-cache-dir --no-deps . \\\\
    && apt-get purge -y --auto-remove gcc libc6-dev python3-dev \\\\
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log
"""
(app / "Dockerfile").write_text(f"""ARG BASE=python:3.13-slim
FROM ${{BASE}}
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS=/src/wheels
WORKDIR /src
RUN python3 -m venv --without-pip /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY . .
{install}WORKDIR /
USER 10001
CMD ["gunicorn", "--bind=0.0.0.0:8000", "--no-control-socket", "shop.app:app"]
""")
lab.build(app, tag=f"{web}:small")
lab.push(f"{web}:small")
''',
        why="A layer holds what is there when its step ends. What came and went inside the step "
        "leaves no trace.",
    ),
    Exercise(
        id="04-patch",
        check=_check_patch,
        hints=(
            "What would an image built today start from? `lab.base('python:3.13-slim')` is fresh.",
            "Either give the fresh base that name, with `lab.tag` and `lab.push`. Or build a "
            "Dockerfile: `FROM` the old one, then `RUN apt-get update && apt-get upgrade -y`.",
        ),
        solution="""
fresh = lab.base("python:3.13-slim")
lab.pull(fresh)
lab.tag(fresh, f"{lab.address}/team/python:patched")
lab.push(f"{lab.address}/team/python:patched")
""",
        why="A fresh base is the patch: whoever builds the base has done the upgrade, and no old "
        "layer travels along. An upgrade on top works as well, and makes the image larger.",
    ),
)
