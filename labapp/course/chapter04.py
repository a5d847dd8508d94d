"""Chapter 04, Size and security: the checks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from labapp.bench import Bench
from labapp.course import checks
from labapp.course.exercises import Verdict, correct, wrong
from labapp.errors import RunError
from labapp.journey.bases import SLIM

if TYPE_CHECKING:
    from labapp.inside.image import Contents

_RATIO = 1.4
"""How many times the slim base's download the small image may have."""

_COMPILER = "gcc-"
"""How the name of the compiler's source package begins."""

_CVE = re.compile(r"CVE-\d{4}-\d{4,}")


def check_04_unused(bench: Bench, answer: object) -> Verdict:
    """Is the answer the largest Debian package that the running shop has nothing of in memory?"""
    name = checks.answered(answer, "the name of a package").partition(":")[0]
    held = checks.given(bench, "shop/web:full")
    contents = checks.contents(bench, held)
    packages = contents.packages[contents.packages["kind"] == "deb"]
    found = packages[packages["name"] == name]
    if found.empty:
        raise wrong(f"'shop/web:full' has no Debian package '{name}'.")
    if str(found["source"].iloc[0]).startswith(_COMPILER):
        raise wrong(f"'{name}' is made from the compiler's source. Which other one is largest?")
    used = _packages_in_memory(bench, contents)
    if name in used:
        raise wrong(f"The running shop holds files of '{name}' in memory. It is no passenger.")
    size = int(found["unpacked_bytes"].iloc[0])
    others = packages[~packages["source"].str.startswith(_COMPILER)]
    larger = others[(others["unpacked_bytes"] > size) & ~others["name"].isin(used)]
    if not larger.empty:
        raise wrong(
            f"'{name}' has {size:,} bytes, and the shop doesn't use it. But {len(larger)} unused "
            "ones are larger."
        )
    return correct(
        f"{size:,} bytes lie unpacked on every server, and nothing there opens them.",
        image=held.pinned,
        package=name,
    )


def _packages_in_memory(bench: Bench, contents: Contents) -> set[str]:
    """Return the packages of which a container of the image has a file in memory."""
    script = "import shop.app, gunicorn.app.wsgiapp; print(open('/proc/self/maps').read())"
    maps = checks.run_once(bench, contents.image.pinned, ["python3", "-c", script])
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "/" in line}
    files = contents.files
    return set(files.loc[files["path"].isin(paths), "package"]) - {""}


def check_04_cve(bench: Bench, answer: object) -> Verdict:
    """Does the answer concern a package that runs in the full image, and none in the slim one?"""
    cve = checks.answered(answer, "the number of a CVE").upper()
    full, slim = checks.given(bench, "shop/web:full"), checks.given(bench, "shop/web:slim")
    if not _CVE.fullmatch(cve):
        raise wrong(f"{cve[:40]!r} is no CVE number. Expected: such as 'CVE-2025-12345'.")
    first, second = (checks.report(bench, held) for held in (full, slim))
    rows = first.rows[first.rows["cve"] == cve]
    if rows.empty:
        also = " 'slim' neither." if cve not in set(second.rows["cve"]) else ""
        raise wrong(f"{cve} was not fixed in a package of 'full' since the release.{also}")
    if bool(rows["headers"].all()):
        raise wrong(f"{cve} is in 'full' only in kernel headers: files that never run.")
    if cve in set(second.rows["cve"]):
        shared = ", ".join(sorted(set(second.rows.loc[second.rows["cve"] == cve, "package"])))
        raise wrong(f"{cve} concerns 'slim', too: it has {shared}.")
    names = ", ".join(sorted(set(rows["package"])))
    return correct(
        f"{cve} is in {names}. 'full' had to be rebuilt, tested and deployed for it. For 'slim' "
        "there was nothing to do: it isn't there.",
        image=full.pinned,
        without=slim.pinned,
        cve=cve,
    )


def check_04_small(bench: Bench, answer: object) -> Verdict:
    """Is the image not much larger than its base, and the shop?"""
    held = checks.pushed(bench, "shop/web:small")
    base = bench.registry.image(bench.base(SLIM)).manifest.download_bytes
    return checks.judge_small(bench, held, limit=int(_RATIO * base))


def check_04_patch(bench: Bench, answer: object) -> Verdict:
    """Does the base lack no fix that is known today, and does its Python run?"""
    held = checks.pushed(bench, "team/python:patched")
    if (checks.contents(bench, held).packages["kind"] == "deb").sum() == 0:
        raise wrong(
            "'team/python:patched' lists no Debian package, so nothing tells whether fixes are "
            "missing. Removing the list is not a patch."
        )
    report = checks.report(bench, held)
    if report.missing:
        names = sorted(set(report.rows.loc[report.rows["state"] == "missing", "package"]))
        raise wrong(
            f"'team/python:patched' still lacks {report.missing} fixes, in {', '.join(names[:4])}"
            f"{' and others' if len(names) > 4 else ''}."
        )
    try:
        said = checks.run_once(bench, held.pinned, ["python3", "-c", "print(6 * 7)"])
    except RunError as error:
        raise wrong(f"No fix is missing, but its Python doesn't run: {error}") from error
    if said.strip() != "42":
        raise wrong(f"No fix is missing, but its Python can't count: it says {said[:40]!r}.")
    return correct(
        f"No fix is missing, as of {report.date:%Y-%m-%d}. Tomorrow, ask again.",
        image=held.pinned,
        fixes_of=f"{report.date:%Y-%m-%d}",
    )
