"""How long the live view of a class takes behind a real hub: ``python benchmarks/class_view.py``.

Needs what ``tests/room/test_view.py`` needs.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import requests

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "room")]

from classroom import room  # noqa: E402
from test_view import SERVICE, Hub, configured  # noqa: E402

SIZE = 200


def measure(hub: Hub) -> None:
    """Post as many learners at once, then draw the page some times."""
    assert hub.process is not None
    posts = []
    for number, record in enumerate(room(SIZE)):
        content = record.content | {"learner": f"user{number}", "seed": number}
        posts.append((hub.token(f"user{number}"), json.dumps(content)))

    def post(each: tuple[str, str]) -> float:
        began, head = time.perf_counter(), {"Authorization": f"token {each[0]}"}
        place = f"{hub.place}/receipts?where=03-pin"
        requests.post(place, data=each[1], headers=head, timeout=60).raise_for_status()
        return time.perf_counter() - began

    began = time.perf_counter()
    with ThreadPoolExecutor(50) as pool:
        slowest = max(pool.map(post, posts))
    print(f"{SIZE} posts: {time.perf_counter() - began:.1f} s, the slowest {slowest:.1f} s")
    browser, took = hub.browser("grace"), []
    for _ in range(7):
        began = time.perf_counter()
        page = browser.get(f"{hub.place}/", timeout=60)
        took.append(time.perf_counter() - began)
    assert page.text.count("<tr class=") == SIZE
    print(f"page: median {statistics.median(took):.2f} s, longest {max(took):.2f} s")
    for child in psutil.Process(hub.process.pid).children(recursive=True):
        if str(SERVICE) in child.cmdline():
            print(f"memory of the service: {child.memory_info().rss / 1e6:.0f} MB")


with tempfile.TemporaryDirectory() as folder:
    hub = configured(Path(folder))
    try:
        hub.start()
        measure(hub)
    finally:
        hub.stop()
