"""Wall time of `labapp run` over chapters 00 to 03, against the same docker commands in a shell.

Both begin with the same engine and registry, emptied of what the chapters make, the base images
fetched by the engine already; they take turns. Run it in the lab's environment::

    .venv/bin/python benchmarks/chapters.py [ROUNDS]
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "notebooks")]

from desk import empty  # noqa: E402

from labapp.bench import Bench, prepare  # noqa: E402
from labapp.course import pages  # noqa: E402
from labapp.feedback import QuietFeedback  # noqa: E402
from labapp.journey import transfer  # noqa: E402
from labapp.machine import jupyter  # noqa: E402
from labapp.state import State  # noqa: E402

QUIET = QuietFeedback()
CHAPTERS = ("00", "01", "02", "03")
PAGE = """\
ARG BASE
FROM ${BASE}
WORKDIR /site
COPY index.html .
USER 10001
CMD ["python3", "-m", "http.server", "8000"]
"""


def by_lab(bench: Bench) -> float:
    """Return the seconds that `labapp run` takes."""
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        for file in pages.chapters(ROOT / "notebooks", CHAPTERS):
            variables = jupyter.environment(bench.state, bench.engine)
            pages.run_chapter(file, Path(out), environment=variables)
        return time.monotonic() - began


def by_shell(bench: Bench) -> float:
    """Return the seconds that the script takes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = files(bench, Path(temporary))
        address = bench.registry.address
        command = ["sh", str(ROOT / "benchmarks" / "chapters.sh"), address]
        command += [str(bench.base("python:3.13")), str(bench.base("python:3.13-slim"))]
        command += [bench.server.name, str(folder)]
        began = time.monotonic()
        subprocess.run(
            command, env=bench.engine.environment(), check=True, stdout=subprocess.DEVNULL
        )
        return time.monotonic() - began


def files(bench: Bench, folder: Path) -> Path:
    """Write what the chapters write by Python: Dockerfiles, pages, the application's copy."""
    for name in ("00", "team", "page"):
        (folder / name).mkdir()
    (folder / "00" / "index.html").write_text("<h1>Hello from a container</h1>\n")
    (folder / "00" / "Dockerfile").write_text(PAGE)
    (folder / "page" / "index.html").write_text("<h1>A page</h1>\n")
    base = f"{bench.registry.address}/team/base:1"
    (folder / "page" / "Dockerfile").write_text(f"FROM {base}\nCOPY index.html /site/\n")
    shutil.copytree(bench.application, folder / "app")
    shutil.copy(ROOT / "dockerfiles" / "full.Dockerfile", folder / "app" / "Dockerfile")
    shutil.copy(ROOT / "dockerfiles" / "first.Dockerfile", folder)
    return folder


def main(rounds: int) -> None:
    """Take turns, and print the medians."""
    bench = prepare(State.open())
    for base in ("python:3.13", "python:3.13-slim"):
        transfer.pull(bench.engine, bench.server, bench.base(base))
    times: dict[str, list[float]] = {"labapp run": [], "shell": []}
    for number in range(rounds):
        for name, measure in (("labapp run", by_lab), ("shell", by_shell)):
            empty(bench)
            bench.engine.client.images.prune(filters={"dangling": True})
            times[name].append(measure(bench))
            print(f"round {number + 1}: {name} {times[name][-1]:.1f} s", flush=True)
    lab, shell = (statistics.median(found) for found in times.values())
    print(f"medians: labapp run {lab:.1f} s, shell {shell:.1f} s, ratio {lab / shell:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
