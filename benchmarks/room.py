"""A room under a storm of learners: seconds to a server, memory of each, failed spawns.

    PYTHONPATH=.:tests:tests/notebooks:tests/room .venv/bin/python benchmarks/room.py [LEARNERS]

It opens a room of its own beside whatever the lab has, lets LEARNERS (6) log in at once, of whom
six then solve chapter 00 at the same time, and one chapter 04; then it removes what they made.
"""

import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from test_room import solve
from visitors import CLASS, Learner, emptied

from labapp import room as rooms
from labapp.bench import prepare
from labapp.machine.ports import free_port
from labapp.state import State


def memory(room: rooms.Room, name: str = "") -> dict[str, float]:
    """Return what the programs of each container take, without the cache of files, in MB."""
    found = {}
    fits = {"label": "labapp.role=room", "name": name}
    for container in room.engine.client.containers.list(filters=fits):
        told = container.stats(stream=False)["memory_stats"]["stats"]
        found[str(container.name)] = told.get("total_rss", told.get("anon", 0)) / 1e6
    return found


def peak(room: rooms.Room, name: str, work: Callable[[], object]) -> float:
    """Return the most that a learner's two containers took together meanwhile, in MB."""
    most = 0.0
    with ThreadPoolExecutor(1) as threads:
        going = threads.submit(work)
        while not going.done():
            taken = memory(room, name)
            most = max(most, sum(taken.values()))
        going.result()
    return most


def come(learner: Learner) -> float:
    """Log in, start the server, run a first cell; return the seconds until the server answered."""
    assert learner.log_in(CLASS).status_code == 302
    seconds = learner.spawn(seconds=600)
    learner.run("from labapp import open_lab\nlab = open_lab('00')")
    learner.channel = None  # a browser would answer the server's pings; this one comes back
    return seconds


count = int(sys.argv[1]) if len(sys.argv) > 1 else 6
bench = prepare(State.open())
room = rooms.Room.of(bench.engine, bench.state)
emptied(room)
rooms.images(bench)
began = time.monotonic()
rooms.start(bench, bind="127.0.0.1", port=free_port(), class_password=CLASS, disk="3G")
print(f"room start to the log-in page: {time.monotonic() - began:.1f} s")
try:
    address = room.settings()["address"]
    learners = [Learner(address, f"learner {n}", f"word {n}") for n in range(count)]
    print(f"one alone: {come(learners[0]):.1f} s")
    began = time.monotonic()
    with ThreadPoolExecutor(count) as threads:
        found = list(threads.map(come, learners[1:]))
    print(
        f"{count - 1} at once: {min(found):.1f} / {statistics.median(found):.1f} / "
        f"{max(found):.1f} s (first, median, last); failed: 0"
    )
    taken = memory(room)
    for kind, fits in (
        ("hub", r"--hub$"),
        ("engine", r"--engine$"),
        ("lab", r"-learner-[^-]*-\w+$"),
    ):
        sizes = [size for name, size in taken.items() if re.search(fits, name)]
        print(f"{kind}: {statistics.median(sizes):.0f} MB of {len(sizes)}")
    began = time.monotonic()
    with ThreadPoolExecutor(6) as threads:
        verdicts = list(threads.map(lambda each: solve(each, "00"), learners[:6]))
    print(f"six solve 00: {time.monotonic() - began:.0f} s; verdicts {verdicts}")
    began, one = time.monotonic(), learners[0]
    print(
        f"memory in 04: {peak(room, 'learner-0', lambda: solve(one, '04')):.0f} MB at most", end=""
    )
    print(f", in {time.monotonic() - began:.0f} s")
    print(f"processors: {os.cpu_count()}, load {os.getloadavg()[0]:.1f}")
finally:
    emptied(room)
