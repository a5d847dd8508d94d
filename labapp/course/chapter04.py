"""Chapter 04, Size and security: the checks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from labapp.bench import Bench
from labapp.course import checks
from labapp.course.exercises import Verdict, Wrong, correct
from labapp.errors import RunError
from labapp.journey.bases import FULL, SLIM

if TYPE_CHECKING:
    from labapp.inside.image import Contents

_COMPILER_SOURCE = "gcc-"
_CVE = re.compile(r"CVE-\d{4}-\d{4,}")


def check_04_unused(bench: Bench, answer: Any) -> Verdict:
    """Is the answer the largest Debian package that the running shop has nothing of in memory?"""
    name = checks.answered(answer, "a text, the name of a package").partition(":")[0]
    held = checks.given(bench, "shop/web:full")
    contents = checks.contents(bench, held)
    packages = contents.packages[contents.packages["kind"] == "deb"]
    found = packages[packages["name"] == name]
    if found.empty:
        raise Wrong(f"'shop/web:full' has no Debian package '{name}'.")
    if str(found["source"].iloc[0]).startswith(_COMPILER_SOURCE):
        raise Wrong(f"'{name}' is made from the compiler's source. Which other one is largest?")
    used = _packages_in_memory(bench, contents)
    if name in used:
        raise Wrong(f"The running shop holds files of '{name}' in memory. It is no passenger.")
    size = int(found["unpacked_bytes"].iloc[0])
    others = packages[~packages["source"].str.startswith(_COMPILER_SOURCE)]
    larger = others[(others["unpacked_bytes"] > size) & ~others["name"].isin(used)]
    if not larger.empty:
        raise Wrong(
            f"'{name}' has {size:,} bytes, and the shop doesn't use it. But {len(larger)} unused "
            "ones are larger."
        )
    return correct(
        f"{size:,} bytes lie unpacked on every server, and nothing there opens them.",
        image=held.pinned,
        package=name,
    )


def _packages_in_memory(bench: Bench, contents: Contents) -> set[str]:
    script = "import shop.app, gunicorn.app.wsgiapp; print(open('/proc/self/maps').read())"
    maps = checks.run_once(bench, contents.image.pinned, ["python3", "-c", script])
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "/" in line}
    files = contents.files
    return set(files.loc[files["path"].isin(paths), "package"]) - {""}


def check_04_cve(bench: Bench, answer: Any) -> Verdict:
    """Does the answer concern a package that runs in the full image, and none in the slim one?"""
    cve = checks.answered(answer, "a text, the number of a CVE").upper()
    full, slim = checks.given(bench, "shop/web:full"), checks.given(bench, "shop/web:slim")
    if not _CVE.fullmatch(cve):
        raise Wrong(f"{cve[:40]!r} is no CVE number. Expected: such as 'CVE-2025-12345'.")
    rows, others = (checks.report(bench, held).rows for held in (full, slim))
    rows, others = rows[rows["cve"] == cve], others[others["cve"] == cve]
    if rows.empty:
        raise Wrong(f"{cve} was not fixed in a package of 'full' since the release.")
    if bool(rows["headers"].all()):
        raise Wrong(f"{cve} is in 'full' only in kernel headers: files that never run.")
    names, shared = (", ".join(sorted(set(found["package"]))) for found in (rows, others))
    if shared:
        raise Wrong(f"{cve} concerns 'slim', too: it has {shared}.")
    return correct(
        f"{cve} is in {names}. 'full' had to be rebuilt, tested and deployed for it. For 'slim' "
        "there was nothing to do: it isn't there.",
        image=full.pinned,
        without=slim.pinned,
        cve=cve,
    )


def check_04_small(bench: Bench, answer: object) -> Verdict:
    """Is the image not much larger than its base, and the shop?"""
    return checks.judge_small(bench, "shop/web:small", times=1.4)


def check_04_patch(bench: Bench, answer: object) -> Verdict:
    """Does the base lack no fix that is known today, and does its Python run?"""
    held = checks.pushed(bench, "team/python:patched")
    if (checks.contents(bench, held).packages["kind"] == "deb").sum() == 0:
        raise Wrong(
            "'team/python:patched' lists no Debian package, so nothing tells whether fixes are "
            "missing. Removing the list is not a patch."
        )
    report, note = checks.report(bench, held), ""
    lacking = report.lacking
    if not report.is_live:
        # Without a mirror nobody here can have what came out after the lab's bases were made.
        for base in (SLIM, FULL):
            base_lacks = checks.report(bench, bench.registry.image(bench.base(base))).lacking
            lacking = lacking[~lacking["cve"].isin(base_lacks["cve"])]
        if late := report.missing - lacking["cve"].nunique():
            note = f", but for {late} that came out after the lab's own bases were made"
    if not lacking.empty:
        names = sorted(set(lacking["package"]))
        raise Wrong(
            f"'team/python:patched' still lacks fixes ({lacking['cve'].nunique()}), for example in "
            f"{', '.join(names[:4])}. A base is as fresh as the day on which it was made."
        )
    try:
        said = checks.run_once(bench, held.pinned, ["python3", "-c", "print(6 * 7)"])
    except RunError as error:
        raise Wrong(f"No fix is missing, but its Python doesn't run: {error}") from error
    if said.strip() != "42":
        raise Wrong(f"No fix is missing, but its Python can't count: it says {said[:40]!r}.")
    return correct(
        f"No fix is missing, as of {report.date:%Y-%m-%d}{note}. Tomorrow, ask again.",
        image=held.pinned,
        fixes_of=f"{report.date:%Y-%m-%d}",
    )
