"""Each reader against some altered inputs; ``tests/fuzz.py`` tells how to run more of them."""

from __future__ import annotations

import itertools

import fuzz
import pytest


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_no_input_breaks_a_reader(reader: str) -> None:
    count = 20 if reader == "answers" else 60
    assert [*filter(None, itertools.islice(fuzz.faults(reader, seed=0), count))] == []
