"""Time and memory to say what is inside an image: the lab's contents against Syft, dive and zlib.

All read the shop on the full base, with one layer more, in which the package database was written
again, as an update does. The lab and Syft read it from the same registry, dive from a saved
archive. Each runs in a process of its own, and they take turns. The lab's seconds are those of the
functions, as in a notebook that is open; what Python's start and the imports take is told below the
table. Run it in the lab's environment::

    .venv/bin/python benchmarks/contents.py [ROUNDS]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import debian.deb822  # noqa: F401  these three are imported late, and imports don't count
import detect_secrets.plugins.keyword  # noqa: F401
import pandas  # noqa: F401
from deliveries import empty_registry

from labapp import feedback
from labapp.bench import Bench, prepare
from labapp.feedback import QuietFeedback
from labapp.inside import image as contents
from labapp.journey import build, transfer
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.server import RegistryServer
from labapp.state import REPOSITORY, State

QUIET = QuietFeedback()
BIN = Path(sys.executable).parent

# A process of little memory starts what is measured, for the peak that Linux tells of a new process
# is never below what its parent held when it started it.
STARTER = """\
import json, os, subprocess, sys, time
began = time.monotonic()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
said = process.stdout.read().decode("utf-8", "replace")
_, status, usage = os.wait4(process.pid, 0)
status = os.waitstatus_to_exitcode(status)
print(json.dumps([time.monotonic() - began, usage.ru_maxrss * 1024, status, said[-3000:]]))
"""

# What is changed on top of the shop: little, and as much as an upgrade of many packages.
LITTLE = "RUN echo >> /var/lib/dpkg/status"
MORE = "RUN cp -r /usr/lib/python3 /usr/lib/python3.13 /opt/"

# What the lab's processes do: this file, run with a name of these, an image and a folder.


def everything(reference: str, folder: Path) -> None:
    """Read all tables of an image."""
    registry = Registry(Reference.parse(reference).registry)
    with feedback.using(QUIET):
        found = contents.read(registry, registry.image(reference), folder=folder)
    for table in (found.layers, found.files, found.changes, found.packages):
        assert len(table)
    for table in (found.privileged, found.tools, found.secrets):
        assert table is not None


def gunzip(reference: str, folder: Path) -> None:
    """Inflate the layers, which are files here, with Python's zlib, and throw them away."""
    for path in folder.iterdir():
        inflater = zlib.decompressobj(31)
        with path.open("rb") as file:
            while chunk := file.read(1024 * 1024):
                inflater.decompress(chunk)


PROGRAMS: dict[str, Callable[[str, Path], None]] = {
    each.__name__: each for each in (everything, gunzip)
}


class Measure:
    """What was measured, by name: seconds of the work and of its process, and bytes of memory."""

    def __init__(self) -> None:
        self.work: dict[str, list[float]] = defaultdict(list)
        self.whole: dict[str, list[float]] = defaultdict(list)
        self.memory: dict[str, list[int]] = defaultdict(list)

    def peer(self, name: str, *command: str, **environment: str) -> None:
        """Run another program; all of its time is its work."""
        self._note(name, self._run(name, list(command), environment))

    def lab(self, name: str, program: str, reference: str, folder: Path) -> None:
        """Run one of the programs above; it says itself how long the work took."""
        command = [sys.executable, __file__, program, reference, str(folder)]
        self._note(name, self._run(name, command, {}), by_itself=True)

    def _run(self, name: str, command: list[str], environment: dict[str, str]) -> list[object]:
        starter = [sys.executable, "-S", "-E", "-c", STARTER, *command]
        output = subprocess.run(
            starter, env=os.environ | environment, check=True, stdout=subprocess.PIPE
        ).stdout
        return list(json.loads(output))

    def _note(self, name: str, ran: list[object], *, by_itself: bool = False) -> None:
        seconds, memory, status, said = ran
        if status != 0:
            raise SystemExit(f"{name} ended with {status}:\n{said}")
        assert isinstance(seconds, float) and isinstance(memory, int)
        self.work[name].append(float(str(said).split()[-1]) if by_itself else seconds)
        self.whole[name].append(seconds)
        self.memory[name].append(memory)
        print(f"  {name}: {self.work[name][-1]:.2f} s, {memory / 1e6:,.0f} MB", flush=True)


def pushed(bench: Bench, server: RegistryServer, name: str, variant: str, *extra: str) -> str:
    """Build the shop with further lines, push it, and return its reference with its digest."""
    tag = f"{server.address}/bench-contents/{name}:1"
    file = REPOSITORY / "dockerfiles" / f"{variant}.Dockerfile"
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder) / "Dockerfile"
        changed.write_text("\n".join([file.read_text(), "USER 0", *extra]))
        build.build(
            bench.engine,
            bench.application,
            tag=tag,
            dockerfile=changed,
            args=bench.build_arguments(file),
        )
    return f"{tag}@{transfer.push(bench.engine, server, tag).digest}"


def kept(source: Path, target: Path) -> Path:
    """Copy a folder of layers that were read."""
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    return target


def measure(bench: Bench, server: RegistryServer, made: list[str], rounds: int) -> Measure:
    """Let all take turns.

    Args:
        bench: where the images are saved from.
        server: the registry that has them.
        made: the shop on the full base; with little on top; with more on top; on the slim base.
        rounds: how often.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _measure(bench, server.registry(), made, rounds, Path(folder))


def _measure(
    bench: Bench, registry: Registry, made: list[str], rounds: int, folder: Path
) -> Measure:
    known, image, larger, slim = made
    archive = folder / "image.tar"
    save = ["docker", "save", "--output", str(archive), image.partition("@")[0]]
    subprocess.run(save, env=bench.engine.environment(), check=True)
    (folder / "blobs").mkdir()
    repository = Reference.parse(image).repository
    for layer in registry.image(image).manifest.layers:
        with (folder / "blobs" / layer.digest[7:]).open("wb") as file:
            file.writelines(registry.open_blob(repository, layer.digest, size=layer.size))
    with feedback.using(QUIET):
        contents.read(registry, registry.image(known), folder=folder / "known")

    found = Measure()
    for number in range(1, rounds + 1):
        print(f"round {number} of {rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
        new = folder / f"new{number}"
        found.lab("lab", "everything", image, new)
        found.peer(
            "syft",
            *(str(BIN / "syft"), "-q", "-o", "json"),
            f"registry:{image.replace('localhost', '127.0.0.1')}",
            SYFT_REGISTRY_INSECURE_USE_HTTP="true",
            SYFT_CHECK_FOR_APP_UPDATE="false",
        )
        found.peer("dive", str(BIN / "dive"), f"docker-archive://{archive}", CI="true")
        found.lab("gunzip", "gunzip", image, folder / "blobs")
        found.lab("again", "everything", image, new)
        copy = kept(folder / "known", folder / f"known{number}")
        found.lab("little layer", "everything", image, copy)
        found.lab("larger layer", "everything", larger, copy)
        found.lab("slim", "everything", slim, folder / f"slim{number}")
    sizes = {name: registry.image(name).manifest for name in (image, larger)}
    print(f"\nthe image: {sizes[image].download_bytes / 1e6:,.0f} MB to download;", end=" ")
    layers = [f"{each.layers[-1].size / 1e6:,.3f}" for each in sizes.values()]
    print(f"the new layers: {layers[0]} and {layers[1]} MB")
    return found


def table(found: Measure) -> None:
    """Print the medians beside the peers' and what was aimed at."""
    work = {name: statistics.median(seconds) for name, seconds in found.work.items()}
    memory = {name: statistics.median(peaks) / 1e6 for name, peaks in found.memory.items()}
    rows = [
        ("full analysis / Syft", work, "lab", "syft", "≤ 0.08"),
        ("full analysis / dive on an archive", work, "lab", "dive", "≤ 1.2"),
        ("full analysis / gunzip by zlib", work, "lab", "gunzip", "≤ 1.0"),
        ("the same image again / first time", work, "again", "lab", "≤ 0.015"),
        ("one little new layer / whole image", work, "little layer", "lab", "the layer's"),
        ("one larger new layer / whole image", work, "larger layer", "lab", "the layer's"),
        ("peak memory / Syft", memory, "lab", "syft", "≤ 0.15"),
        ("peak memory, full / slim", memory, "lab", "slim", "≤ 1.5"),
    ]
    print(
        f"\nload {os.getloadavg()[0]:.1f}\n{'medians':38}{'lab':>10}{'peer':>10}{'ratio':>9}   aim"
    )
    for what, medians, mine, theirs, aim in rows:
        one, other = medians[mine], medians[theirs]
        unit, digits = ("s", 3) if medians is work else ("MB", 0)
        print(
            f"{what:38}{one:>8.{digits}f} {unit:2}{other:>7.{digits}f} {unit:2}"
            f"{one / other:>8.4f}   {aim}"
        )
    starts = [
        whole - own
        for name in ("lab", "again")
        for whole, own in zip(found.whole[name], found.work[name], strict=True)
    ]
    print(f"Python's start and imports, not counted: {statistics.median(starts):.2f} s")


def main(rounds: int) -> None:
    """Make the images in a registry of their own, measure, and print the table."""
    bench = prepare(State.open())
    made: list[str] = []
    with empty_registry(bench) as (server, _):
        try:
            made.append(pushed(bench, server, "known", "full"))
            made.append(pushed(bench, server, "little", "full", LITTLE))
            made.append(pushed(bench, server, "larger", "full", MORE))
            made.append(pushed(bench, server, "slim", "slim"))
            table(measure(bench, server, made, rounds))
        finally:
            for reference in made:
                transfer.remove(bench.engine, reference.partition("@")[0])


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in PROGRAMS:
        program, image, place = sys.argv[1:]
        begin = time.monotonic()
        PROGRAMS[program](image, Path(place))
        print(time.monotonic() - begin)
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
