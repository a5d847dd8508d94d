"""How far a call goes: the files of the lab that it enters, and the requests that it sends.

Each call is made twice and counted the second time, in all of its threads; what runs only because
a module is imported is left out. Run it in the lab's environment::

    .venv/bin/python benchmarks/ways.py
"""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from requests.adapters import HTTPAdapter

from labapp import feedback, open_lab
from labapp.bench import prepare
from labapp.feedback import QuietFeedback
from labapp.lab import Lab
from labapp.state import State

PACKAGE = Path(feedback.__file__).parent
DOCKERFILE = "FROM {} AS base\nFROM scratch\nCOPY --from=base /etc /etc\n"


def way(work: Callable[[], object]) -> tuple[list[str], int, int]:
    """Return the files that a call enters, in order, and its requests to registry and engine."""
    files: dict[str, None] = {}
    registry, engine = [], []

    def seen(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_flags & inspect.CO_OPTIMIZED:
            return  # the body of a module or a class
        if code is HTTPAdapter.send.__code__:
            url = frame.f_locals["request"].url
            (engine if url.startswith(("http+docker:", "http+unix:")) else registry).append(url)
        elif Path(code.co_filename).is_relative_to(PACKAGE):
            files.setdefault(str(Path(code.co_filename).relative_to(PACKAGE)))

    work()
    threading.setprofile(seen)
    sys.setprofile(seen)
    work()
    sys.setprofile(None)
    threading.setprofile(None)  # type: ignore[arg-type]
    return list(files), len(registry), len(engine)


def main() -> None:
    """Print a line for each call, with the files below it."""
    with tempfile.TemporaryDirectory() as folder, feedback.using(QuietFeedback()):
        os.chdir(folder)
        lab = open_lab("03")
        assert isinstance(lab, Lab)
        image, base = f"{lab.address}/bench/ways:1", lab.base("python:3.13-slim")
        (lab.work / "Dockerfile").write_text(DOCKERFILE.format(base))
        lab.build(lab.work, tag=image)
        calls = {
            "lab.push, of what is there": (lambda: lab.push(image), 6),
            "lab.digest": (lambda: lab.digest(image), 3),
            "lab.check('03-pin')": (lambda: lab.check("03-pin"), 9),
            "lab.inspect": (lambda: lab.inspect(image), 14),
            "prepare, as 'start' does": (lambda: prepare(State.open()), 12),
        }
        for name, (work, aim) in calls.items():
            files, registry, engine = way(work)
            asked = f"{registry} requests to the registry, {engine} to the engine"
            print(f"{name:27} {len(files):2} files (aim {aim:2}), {asked}\n    {' '.join(files)}\n")
        lab.remove(image)


if __name__ == "__main__":
    main()
