"""How long the live view of a class takes in a real room: seconds of a post, and of the page.

    PYTHONPATH=.:tests:tests/room .venv/bin/python benchmarks/class_view.py

It opens a room, lets 200 learners in, whose servers are not started, and removes them.
"""

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import requests
from classroom import room as made_up
from visitors import CLASS, View, emptied

from labapp import room as rooms
from labapp.bench import prepare
from labapp.machine.ports import free_port
from labapp.state import State

SIZE = 200


def measure(view: View) -> None:
    """Post as many learners at once, then draw the page some times."""
    records = made_up(SIZE)
    with ThreadPoolExecutor(10) as pool:
        tokens = list(pool.map(view.token, (f"user{number}" for number in range(SIZE))))

    def post(number: int) -> float:
        content = records[number].content | {"learner": f"user{number}", "seed": number}
        began, head = time.perf_counter(), {"Authorization": f"token {tokens[number]}"}
        place = f"{view.place}/receipts?where=03-pin"
        answer = requests.post(place, data=json.dumps(content), headers=head, timeout=60)
        answer.raise_for_status()
        return time.perf_counter() - began

    began = time.perf_counter()
    with ThreadPoolExecutor(50) as pool:
        slowest = max(pool.map(post, range(SIZE)))
    print(f"{SIZE} posts: {time.perf_counter() - began:.1f} s, the slowest {slowest:.1f} s")
    browser, took = view.browser(view.teacher), []
    for _ in range(7):
        began = time.perf_counter()
        page = browser.get(f"{view.place}/", timeout=60)
        took.append(time.perf_counter() - began)
    assert page.text.count("<tr class=") == SIZE
    print(f"page: median {statistics.median(took):.2f} s, longest {max(took):.2f} s")


bench = prepare(State.open())
room = rooms.Room.of(bench.engine, bench.state)
emptied(room)
try:
    rooms.start(bench, bind="127.0.0.1", port=free_port(), class_password=CLASS)
    measure(View(room))
finally:
    emptied(room)
