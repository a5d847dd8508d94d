"""Time to make base images, to push and to pull: the lab against the tools that do the work.

``bases`` compares a base image from Debian's packages, stored in a registry, with the same runs of
``mmdebstrap`` alone, their archives thrown away. ``transfers`` compares the lab's push and pull,
checks included, with ``docker push`` and ``docker pull``; the registry is empty each time, and the
engine has none of the layers before a pull. All take turns, over a registry of their own. Run it in
the lab's environment, with as many rounds as there is time for::

    .venv/bin/python benchmarks/deliveries.py transfers [ROUNDS]
    .venv/bin/python benchmarks/deliveries.py bases [ROUNDS] [NAME...]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from labapp import feedback
from labapp.bench import Bench, prepare
from labapp.feedback import QuietFeedback
from labapp.journey import build, debian
from labapp.journey import transfer as images
from labapp.journey.bases import FULL, SLIM, Shelf
from labapp.registry.server import RegistryServer
from labapp.state import State

BASES = (FULL, SLIM)
PLAIN = "bench-deliveries:1"
# None of its layers is one that the base on the engine has.
DOCKERFILE = """\
ARG BASE
FROM ${BASE} AS base
FROM scratch
COPY --from=base /etc /etc
COPY --from=base /usr /usr
COPY --from=base /var /var
"""
Times = dict[str, list[float]]


@contextmanager
def empty_registry(bench: Bench) -> Iterator[tuple[RegistryServer, State]]:
    """Start a registry with nothing in it, and remove it in the end."""
    with tempfile.TemporaryDirectory() as folder:
        state = State.open(Path(folder))
        server = RegistryServer(engine=bench.engine, state=state)
        try:
            server.start(image=bench.server.image)
            yield server, state
        finally:
            server.remove()


def seconds(work: Callable[[], object]) -> float:
    """Do the work, and return how long it took."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def transfer(bench: Bench, *, by_lab: bool) -> tuple[float, float]:
    """Push the image to an empty registry, drop it, pull it; return both times in seconds."""
    engine = bench.engine
    with empty_registry(bench) as (server, _):
        name = f"{server.address}/bench-deliveries/plain:1"

        def command(verb: str) -> None:
            argv = ["docker", verb, name]
            environment = engine.environment()
            subprocess.run(argv, env=environment, check=True, stdout=subprocess.DEVNULL)

        def push() -> object:
            return images.push(engine, server, name)

        def pull() -> object:
            return images.pull(engine, server, name)

        images.tag(engine, PLAIN, name)
        try:
            pushed = seconds(push if by_lab else lambda: command("push"))
            images.remove(engine, name)
            images.remove(engine, PLAIN)
            pulled = seconds(pull if by_lab else lambda: command("pull"))
            images.tag(engine, name, PLAIN)
        finally:
            images.remove(engine, name)
    return pushed, pulled


def transfers(bench: Bench, rounds: int) -> None:
    """Measure pushes and pulls, and print the medians."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Dockerfile").write_text(DOCKERFILE)
        build.build(
            bench.engine,
            Path(folder),
            tag=PLAIN,
            args={"BASE": str(bench.base(SLIM))},
        )
    times: Times = defaultdict(list)
    try:
        transfer(bench, by_lab=False)  # not counted: the first one reads from disk
        for number in range(rounds):
            # Who begins changes with each round.
            for by_lab in (number % 2 == 0, number % 2 == 1):
                who = "lab" if by_lab else "docker"
                pushed, pulled = transfer(bench, by_lab=by_lab)
                times[f"push {who}"].append(pushed)
                times[f"pull {who}"].append(pulled)
                print(f"round {number + 1}: {who}: push {pushed:.2f} s, pull {pulled:.2f} s")
    finally:
        images.remove(bench.engine, PLAIN)
    header()
    row("push / docker push", times["push lab"], times["push docker"], "≤ 1.05")
    row("pull / docker pull", times["pull lab"], times["pull docker"], "≤ 1.05")


def bases_by_lab(bench: Bench, names: list[str]) -> float:
    """Make base images at once and store them; return the seconds."""
    with empty_registry(bench) as (server, state):
        shelf = Shelf(bench.engine, server, state)
        return seconds(lambda: shelf.make(names))


def bases_alone(names: list[str]) -> float:
    """Run mmdebstrap for the same images at once, and throw away what it writes."""

    def drain(root: debian.Root) -> int:
        return sum(map(len, root))

    with tempfile.TemporaryDirectory() as folder:

        def work() -> None:
            with (
                feedback.bars("mmdebstrap", unit="steps") as bars,
                ThreadPoolExecutor(len(names)) as pool,
            ):
                recipes = map(debian.recipe, names)
                roots = [debian.Root(each, folder=Path(folder), bars=bars) for each in recipes]
                list(pool.map(drain, roots))

        try:
            return seconds(work)
        finally:
            debian.clear(Path(folder))


def base_images(bench: Bench, rounds: int, names: list[str]) -> None:
    """Measure base images from Debian's packages, and print the medians."""
    times: Times = defaultdict(list)
    for number in range(rounds):
        for by_lab in (number % 2 == 1, number % 2 == 0):
            who = "lab" if by_lab else "mmdebstrap"
            times[who].append(bases_by_lab(bench, names) if by_lab else bases_alone(names))
            print(f"round {number + 1}: {who}: {times[who][-1]:.1f} s", flush=True)
    header()
    row(f"{', '.join(names)} / mmdebstrap", times["lab"], times["mmdebstrap"], "≤ 1.15")


def header() -> None:
    """Print the first line of the table."""
    print(
        f"\nload {os.getloadavg()[0]:.1f}\n{'medians':46}{'lab':>9}{'peer':>11}{'ratio':>8}   aim"
    )


def row(what: str, lab: list[float], peer: list[float], aim: str) -> None:
    """Print a line of the table."""
    one, other = statistics.median(lab), statistics.median(peer)
    print(f"{what:46}{one:>7.2f} s{other:>9.2f} s{one / other:>8.2f}   {aim}")


def main(what: str, rounds: int | None, names: list[str]) -> None:
    """Measure one of the two."""
    with feedback.using(QuietFeedback()):
        bench = prepare(State.open())
        if what == "bases":
            base_images(bench, rounds or 1, names or list(BASES))
        elif what == "transfers":
            transfers(bench, rounds or 5)
        else:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    given = sys.argv[1:] or ["help"]
    main(given[0], int(given[1]) if given[1:] else None, given[2:])
