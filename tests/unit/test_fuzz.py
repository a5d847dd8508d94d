"""Each reader against some altered inputs; ``tests/fuzz.py`` tells how to run more of them."""

from __future__ import annotations

import itertools
import os
import time

import fuzz
import pytest

INPUTS = int(os.environ.get("FUZZ_INPUTS", 0))


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_no_input_breaks_a_reader(reader: str) -> None:
    tried = fuzz.faults(reader, seed=time.time_ns() if INPUTS else 0)
    count = INPUTS or (20 if reader == "answers" else 60)
    assert next(filter(None, itertools.islice(tried, count)), "") == ""
