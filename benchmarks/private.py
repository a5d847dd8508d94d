"""Uploads and downloads: the registry with TLS, accounts and tokens against the plain one.

Both are the same program on the same machine and disk. What is sent can't be compressed, and is new
each time. ``client`` is the lab's own HTTP client, a blob at once, whose digest it computes;
``engine`` is ``docker push`` and ``docker pull`` as the lab does them, checks included. The two
registries take turns; a round is discarded before the first counts. Run it in the lab's
environment, with as many rounds as there is time for::

    .venv/bin/python benchmarks/private.py [ROUNDS] [MEGABYTES]
"""

from __future__ import annotations

import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from labapp.bench import Bench, prepare
from labapp.feedback import QuietFeedback
from labapp.journey import transfer
from labapp.machine.engine import Engine
from labapp.private.registry import PrivateRegistry
from labapp.registry.client import Registry
from labapp.registry.server import RegistryServer
from labapp.state import State

QUIET = QuietFeedback()
REPOSITORY = "bench/private"
PIECE = 1024 * 1024
Speeds = dict[str, list[float]]


def seconds(work: Callable[[], object]) -> float:
    """Do the work, and return how long it took."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def blobs(registry: Registry, megabytes: int) -> tuple[float, float]:
    """Store a new blob and read it again; return both speeds in MB/s."""
    piece = os.urandom(PIECE)
    digest = ""

    def upload() -> None:
        nonlocal digest
        new = (os.urandom(8) + piece[8:] for _ in range(megabytes))
        digest, _ = registry.upload_blob(REPOSITORY, new)

    def download() -> None:
        for _ in registry.open_blob(REPOSITORY, digest):
            pass

    size = megabytes * PIECE / 1e6
    return size / seconds(upload), size / seconds(download)


def image(engine: Engine, reference: str, megabytes: int) -> None:
    """Make an image of one new layer."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        entry = tarfile.TarInfo("data")
        entry.size = megabytes * PIECE
        tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    name, _, tag = reference.rpartition(":")
    engine.client.api.import_image_from_data(content.getvalue(), repository=name, tag=tag)


def transfers(
    engine: Engine,
    address: str,
    megabytes: int,
    push: Callable[[str], object],
    pull: Callable[[str], object],
) -> tuple[float, float]:
    """Push a new image and pull it again; return both speeds in MB/s."""
    reference = f"{address}/{REPOSITORY}:1"
    image(engine, reference, megabytes)
    size = megabytes * PIECE / 1e6
    try:
        pushed = seconds(lambda: push(reference))
        transfer.remove(engine, reference)
        pulled = seconds(lambda: pull(reference))
    finally:
        transfer.remove(engine, reference)
    return size / pushed, size / pulled


def measure(
    bench: Bench, server: RegistryServer, private: PrivateRegistry, rounds: int, megabytes: int
) -> Speeds:
    """Let the two take turns; the order changes with each round."""
    engine, speeds = bench.engine, defaultdict(list)

    def plain() -> tuple[float, ...]:
        def push(name: str) -> object:
            return transfer.push(engine, server, name)

        def pull(name: str) -> object:
            return transfer.pull(engine, server, name)

        address = server.address
        return (
            *blobs(server.registry(), megabytes),
            *transfers(engine, address, megabytes, push, pull),
        )

    def guarded() -> tuple[float, ...]:
        address = private.address
        return (
            # A new client each time: its token is part of the work.
            *blobs(private.registry("bench", "bench"), megabytes),
            *transfers(engine, address, megabytes, private.push, private.pull),
        )

    for number in range(rounds + 1):
        turns = [("plain", plain), ("private", guarded)]
        for who, work in turns if number % 2 else reversed(turns):
            found = work()
            print(f"round {number}: {who:8}", *(f"{speed:7.1f}" for speed in found), "MB/s")
            if number:
                for what, speed in zip(WHAT, found, strict=True):
                    speeds[f"{who} {what}"].append(speed)
    return speeds


WHAT = ("client, upload", "client, download", "engine, push", "engine, pull")


def main(rounds: int, megabytes: int) -> None:
    """Measure, and print medians and ratios."""
    bench = prepare(State.open())
    with tempfile.TemporaryDirectory() as folder:
        state = State.open(Path(folder))
        # Both are new, and so equally empty.
        state.write("registry", {"image": bench.state.read("registry")["image"]})
        server = RegistryServer(engine=bench.engine, state=state)
        private = PrivateRegistry(engine=bench.engine, state=state)
        try:
            server.start()
            private.start()
            private.trust()
            private.accounts.add("bench", "bench", rights={"bench/*": ("pull", "push")})
            private.log_in("bench", "bench")
            speeds = measure(bench, server, private, rounds, megabytes)
        finally:
            private.distrust()
            private.stop()
            for each in (private.server, server):
                each.remove()
    print(f"\nload {os.getloadavg()[0]:.1f}, {rounds} rounds of {megabytes} MiB, medians in MB/s")
    print(f"{'':20}{'private':>10}{'plain':>10}{'ratio':>8}   lowest and highest ratio of a round")
    for what in WHAT:
        one, other = speeds[f"private {what}"], speeds[f"plain {what}"]
        mine, theirs = statistics.median(one), statistics.median(other)
        ratios = [a / b for a, b in zip(one, other, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{what:20}{mine:>10.1f}{theirs:>10.1f}{mine / theirs:>8.2f}   {spread}")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(given[0] if given else 5, given[1] if given[1:] else 128)
