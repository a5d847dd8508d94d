"""Chapter 03, Tags and digests: the checks."""

from __future__ import annotations

from typing import Any

from labapp.bench import Bench
from labapp.course import checks
from labapp.course.exercises import NotYet, Verdict, Wrong, correct
from labapp.journey.deploy import DEPLOYMENT_LABEL, project

_TESTED = "shop/web:1.4-tested"


def check_03_digest(bench: Bench, answer: Any) -> Verdict:
    """Is the answer the digest by which the registry serves the tested image?"""
    answer = checks.answered(answer, "your computation, a text")
    held = checks.given(bench, _TESTED)
    # Where the tag names an index, both its bytes and the image's are served under their digests.
    if answer in held.digests:
        return correct(
            "The registry serves exactly these bytes under exactly this name.", image=held.pinned
        )
    checks.check_form(answer)
    if answer == held.manifest.config.digest:
        raise Wrong("That is the digest of the config. Some engines call it the image ID.")
    if answer in checks.digests(bench, "shop/web:1.4"):
        raise Wrong("That is what the tag '1.4' names now. Expected: '1.4-tested'.")
    raise Wrong(
        f"The registry serves no manifest {checks.short(answer)} for this image. Did you use the "
        "bytes as they came, before any parsing or printing?"
    )


def check_03_pin(bench: Bench, answer: object) -> Verdict:
    """Is the file pinned to what was tested, and does a container run from it?"""
    file, tested = checks.written(bench, "production.yaml"), checks.given(bench, _TESTED)
    reference = checks.services(file)["web"]
    if reference.digest is None:
        raise NotYet(f"'production.yaml' still names a tag: '{reference}'.")
    if reference.digest not in tested.digests:
        if reference.digest in checks.digests(bench, "shop/web:1.4"):
            raise Wrong(
                f"'production.yaml' is pinned to {checks.short(reference.digest)}: that is what "
                "the tag '1.4' names since your colleague's push. Nobody tested it."
            )
        raise Wrong(
            f"{checks.short(reference.digest)} is not the image that was tested. Is it an image "
            "ID, the digest of a config?"
        )
    # Of this deployment file, or started by hand.
    ours = (None, project(bench.engine, file))
    running = [c for c in checks.containers(bench) if c["State"]["Running"]]
    running = [c for c in running if (c["Config"]["Labels"] or {}).get(DEPLOYMENT_LABEL) in ours]
    if not any(c["Config"]["Image"] == str(reference) for c in running):
        raise Wrong("The file is pinned to the tested digest, but nothing runs from it: deploy.")
    return correct(
        f"The server runs {checks.short(reference.digest)}, the image that was tested.",
        image=reference.pinned(reference.digest),
    )


def check_03_from(bench: Bench, answer: object) -> Verdict:
    """Does the Dockerfile trust nothing but the base by digest, and was the page built on that?"""
    base = checks.given(bench, "team/base:1")
    file = checks.written(bench, "page/Dockerfile")
    named = checks.pinned_images(file)
    if not any(r.repository == "team/base" and r.digest in base.digests for r in named):
        raise Wrong(
            f"The FROM line is pinned to '{named[-1].repository}' at "
            f"{checks.short(named[-1].digest)}; 'team/base:1' is {checks.short(base.digest)}"
        )
    held = checks.built_on(bench, "page/web:pinned", base, file)
    return correct(
        "Whoever builds this Dockerfile, whenever, starts from the same base.",
        image=held.pinned,
        base=base.pinned,
    )
