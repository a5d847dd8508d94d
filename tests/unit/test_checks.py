"""What checks look at without an engine: where a container answers, in what order faults come."""

from __future__ import annotations

from typing import Any

import pytest

from labapp.attacks.delivery import FAULTS
from labapp.course.chapter00 import published
from labapp.course.chapter08 import in_random_order


@pytest.mark.parametrize(
    ("network", "host", "place"),
    [
        ("bridge", "127.0.0.1", "127.0.0.1:49153"),
        ("bridge", "0.0.0.0", "127.0.0.1:49153"),
        ("bridge", "", "127.0.0.1:49153"),
        ("bridge", "192.0.2.7", "192.0.2.7:49153"),
        ("bridge", "::1", "[::1]:49153"),
        ("bridge", "::", "[::1]:49153"),
        ("host", None, "127.0.0.1:8000"),
        ("bridge", None, None),
    ],
)
def test_where_a_container_answers(network: str, host: str | None, place: str | None) -> None:
    bindings = None if host is None else [{"HostIp": host, "HostPort": "49153"}]
    container: Any = {
        "HostConfig": {"NetworkMode": network},
        "NetworkSettings": {"Ports": {"8000/tcp": bindings, "9/udp": None}},
    }
    assert list(published(container)) == ([place] if place else [])


def test_no_script_knows_which_run_has_a_fault() -> None:
    orders = [in_random_order() for _ in range(50)]
    for order in orders:
        assert sorted(filter(None, order)) == sorted(FAULTS) and order.count("") in (2, 3)
    for place in range(len(FAULTS) + 2):
        assert {order[place] == "" for order in orders} == {True, False}
