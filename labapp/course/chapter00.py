"""Chapter 00, Start here: the checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import requests

from labapp.bench import Bench
from labapp.course import checks
from labapp.course.exercises import NotYet, Verdict, Wrong, correct
from labapp.machine.ports import ask


def check_00_tag(bench: Bench, answer: object) -> Verdict:
    """Does the registry serve the same image as ``mine`` and as ``1.0``?"""
    first = checks.given(bench, "hello/web:1.0")
    if checks.digest(bench, "hello/web:mine") is None:
        for elsewhere in bench.registry.repositories():
            if checks.digest(bench, f"{elsewhere}:mine") in first.digests:
                raise Wrong(
                    f"The registry has your tag 'mine' in '{elsewhere}'. It belongs in 'hello/web'."
                )
    mine = checks.pushed(bench, "hello/web:mine").digest
    # Where the tag names an index, what is pulled and pushed on is the image for this machine.
    if mine not in first.digests:
        raise Wrong(
            f"'hello/web:mine' is {checks.short(mine)} and 'hello/web:1.0' is "
            f"{checks.short(first.digest)}: two images. Was another image tagged, or built?"
        )
    return correct(
        f"Two labels, one image: both tags name {checks.short(mine)}",
        image=f"{bench.registry.address}/hello/web@{mine}",
    )


def check_00_run(bench: Bench, answer: object) -> Verdict:
    """Does a container of the learner's tag answer on a port of this machine?"""
    repository = f"{bench.registry.address}/hello/web"
    # By tag, or by digest, which says the same and more.
    digests = [f"@{digest}" for digest in checks.digests(bench, "hello/web:mine")]
    wanted = f"{repository}:mine"
    names = {wanted, *(f"{name}{each}" for name in (wanted, repository) for each in digests)}
    found = [c for c in checks.containers(bench) if "/hello/web" in c["Config"]["Image"]]
    ours = [c for c in found if c["Config"]["Image"] in names]
    running = [c for c in ours if c["State"]["Running"]]
    if not ours:
        others = {c["Config"]["Image"] for c in found if c["State"]["Running"]} or {"none"}
        now = ", ".join(sorted(others))
        raise NotYet(f"No container was started from '{wanted}' yet. Running now: {now}.")
    if not running:
        raise Wrong(
            f"A container was started from '{wanted}', but it ended with code "
            f"{ours[0]['State'].get('ExitCode')}. Was another command given behind the image's "
            "name?"
        )
    places = [place for each in running for place in published(each)]
    place = next(filter(_answers, places), "")
    if not place:
        raise Wrong(
            "The container runs, but no port of this machine leads to the web server in it, which "
            "listens on port 8000. Is that the one you published?"
        )
    # By tag alone, where it is on the engine and not yet pushed, or in the registry no more.
    image = f"{repository}{digests[0]}" if digests else wanted
    return correct(f"It answers at {place}.", image=image, container=running[0]["Id"][:12])


def published(container: dict[str, Any]) -> Iterator[str]:
    """Yield at which addresses of this machine a container may answer."""
    if container["HostConfig"].get("NetworkMode") == "host":
        yield "127.0.0.1:8000"
    for bindings in (container["NetworkSettings"].get("Ports") or {}).values():
        for binding in bindings or ():
            host = binding.get("HostIp") or "127.0.0.1"
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
            yield f"{f'[{host}]' if ':' in host else host}:{binding['HostPort']}"


def _answers(place: str) -> bool:
    try:
        return ask(f"http://{place}/", seconds=5).ok
    except requests.RequestException:
        return False
