"""A room under a storm of learners: seconds to a server, memory of each, failed spawns.

    PYTHONPATH=.:tests/room .venv/bin/python benchmarks/room.py [LEARNERS]

It opens a room of its own beside whatever the lab has, with limits small enough for LEARNERS (6)
on this machine, lets them all log in at once, and removes what they made.
"""

import os
import re
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from visitors import CLASS, Learner, emptied

from labapp import room as rooms
from labapp.bench import prepare
from labapp.machine.ports import free_port
from labapp.state import State


def memory(room: rooms.Room) -> dict[str, float]:
    """Return what each container takes, without what the kernel keeps of files, in MB."""
    found = {}
    for container in room.engine.client.containers.list(filters={"label": "labapp.role=room"}):
        told = container.stats(stream=False)["memory_stats"]
        files = told["stats"].get("total_inactive_file", told["stats"].get("inactive_file", 0))
        found[str(container.name)] = (told["usage"] - files) / 1e6
    return found


def come(learner: Learner) -> float:
    """Log in, start the server, run a first cell; return the seconds until the server answered."""
    assert learner.log_in(CLASS).status_code == 302
    seconds = learner.spawn(seconds=600)
    learner.run("from labapp import open_lab\nlab = open_lab('00')")
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
    print(f"processors: {os.cpu_count()}, load {os.getloadavg()[0]:.1f}")
finally:
    emptied(room)
