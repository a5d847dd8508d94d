"""The course on other engines, each of Debian's packages and in a network of its own.

``python3 -m labapp test --engine podman-5 docker-28`` calls it. Of each engine, the root is made
once and kept in the folder of the tests' lab; the chapters run beside it, as on its own machine:
untouched, and solved. At the end there is a table of what each chapter came to.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registries import stored_at

from labapp import bundle, feedback
from labapp.bench import Bench, prepare
from labapp.errors import LabError
from labapp.journey import build, transfer
from labapp.journey.bases import SLIM
from labapp.machine import own_engine
from labapp.machine.ports import wait_until
from labapp.state import State

REPOSITORY = Path(__file__).parents[1]
RECORDED = Path(__file__).parent / "unit" / "engines"
ABOUT = {"DockerRootDir", "DriverStatus", "SecurityOptions", "ServerVersion"}
CHAPTERS = tuple(sorted(file.name[:2] for file in (REPOSITORY / "notebooks").glob("*.ipynb")))
LEARNER = "learner"

ALWAYS = "iptables ca-certificates iproute2 procps uidmap slirp4netns"
PACKAGES = {
    "docker": "docker.io docker-cli docker-buildx rootlesskit",
    "podman": "podman runc netavark aardvark-dns nftables passt python3 docker-cli",
}
OLD_PACKAGES = {
    "docker": "docker.io",
    "podman": "podman runc netavark aardvark-dns python3 docker.io",
}
"""What Debian 12 has of them."""

# For a service that is never started anew, what the lab would write.
LOCALHOST = '[[registry]]\nlocation = "localhost"\ninsecure = true\n'

# The root must be a mount point and the root of its mount namespace: else no engine in it unpacks
# an image, and no ordinary user gets a namespace of users. A tap device is for rootless ones.
# All that the engine starts is in a namespace of processes, and ends with it.
ENTER = """
mount --bind "$1" "$1"; for each in sys dev; do mount --rbind /$each "$1/$each"; done
cd "$1"; shift; mount -t proc proc proc; mkdir -p old; pivot_root . old; cd /
[ -e /run/tun ] || mknod -m 666 /run/tun c 10 200
[ ! -e /dev/net/tun ] || mount --bind /run/tun /dev/net/tun
umount --lazy /old; "$@" & wait $!
"""

# A machine in a machine may not set the limits that Podman asks for.
RUNC = """#!/bin/sh
for word; do
  case $before in
    -b | --bundle) sed -i 's/,"rlimits":\\[[^]]*\\]//' "$word/config.json" ;;
  esac
  before=$word
done
exec runc "$@"
"""


# Podman's service ends when nobody asks it, and starts when somebody does, as by systemd's socket.
ON_DEMAND = """
import os, select, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(64)
while select.select([listener], [], []):
    if pid := os.fork():
        os.waitpid(pid, 0)
        continue
    os.dup2(listener.fileno(), 3)
    os.set_inheritable(3, True)
    os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
    os.execvp("podman", sys.argv[2:])
"""


@dataclass(frozen=True)
class Kind:
    """An engine to be made; ``settings`` are those of dockerd, ``variables`` of its process."""

    suite: str
    program: str = "docker"
    settings: Mapping[str, object] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    rootless: bool = False


CONTAINERD = {"features": {"containerd-snapshotter": True}}
CLASSIC = {"features": {"containerd-snapshotter": False}}
API_144 = {"DOCKER_MIN_API_VERSION": "1.44"}

KINDS = {
    "docker-20.10": Kind("bookworm"),
    "docker-26": Kind("trixie", settings=CONTAINERD, variables=API_144),
    "docker-26-classic": Kind("trixie", settings=CLASSIC),
    "docker-28": Kind("sid", settings=CONTAINERD),
    "docker-28-api-1.44": Kind("sid", settings=CONTAINERD, variables=API_144),
    "docker-28-classic": Kind("sid", settings=CLASSIC),
    "docker-rootless": Kind("trixie", rootless=True),
    "podman-4": Kind("bookworm", "podman"),
    "podman-5": Kind("trixie", "podman"),
    "podman-rootless": Kind("trixie", "podman", rootless=True),
}
"""By the name that ``--engine`` takes. 1.44 is the oldest API that Docker 29 serves."""


def root(kind: Kind, folder: Path) -> Path:
    """Return the folder with a release of Debian and an engine; it is made once."""
    suite, made = kind.suite, folder / f"{kind.suite}-{kind.program}"
    if not (made / "etc/hosts").exists():
        shutil.rmtree(made, ignore_errors=True)
        feedback.say(f"Making a root of Debian '{suite}' with {kind.program}.")
        engine = (OLD_PACKAGES if suite == "bookworm" else PACKAGES)[kind.program]
        packages = f"{ALWAYS} {engine}".split()
        # The signed date of what is not released yet may have passed.
        old = 'Acquire::Check-Valid-Until "false"'
        command = ["mmdebstrap", "--variant=minbase", f"--aptopt={old}"]
        command += [f"--include={','.join(packages)}", suite, str(made)]
        subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        subprocess.run(["chroot", made, "useradd", "--create-home", LEARNER], check=True)
        runtime = made / "usr/local/bin/labapp-runc"
        runtime.write_text(RUNC)
        runtime.chmod(0o755)
        own = made / "home" / LEARNER / ".config/containers/registries.conf.d"
        own.mkdir(parents=True)
        (own / "localhost.conf").write_text(LOCALHOST)
        subprocess.run(["chroot", made, "chown", "-R", LEARNER, f"/home/{LEARNER}"], check=True)
        (made / "etc/containers").mkdir(exist_ok=True)
        (made / "etc/containers/containers.conf").write_text(
            '[engine]\nruntime = "lab"\n[engine.runtimes]\nlab = ["/usr/local/bin/labapp-runc"]\n'
        )
        for name in ("resolv.conf", "hosts"):
            shutil.copy(f"/etc/{name}", made / "etc")
    return made


@contextlib.contextmanager
def network(name: str, folder: Path) -> Iterator[list[str]]:
    """Make a network namespace with a way out; give the command that enters it."""
    id = hashlib.sha256(f"{folder}/{name}".encode()).hexdigest()[:8]
    space, link, outside = f"labapp-{id}", f"labv{id}", own_engine.choose(id)
    gone = f"ip link delete {link}; ip netns delete {space}"
    subprocess.run(["sh", "-c", gone], capture_output=True)
    outside.down()
    outside.up()
    try:
        inside = f"""
            ip netns add {space}
            ip link add {link} type veth peer name eth0 netns {space}
            ip link set {link} master {outside.bridge} up
            ip -n {space} address add {outside.block[2]}/24 dev eth0
            ip -n {space} link set eth0 up
            ip -n {space} link set lo up
            ip -n {space} route add default via {outside.block[1]}
            echo 1 > /proc/sys/net/ipv4/ip_forward
        """
        subprocess.run(["sh", "-ec", inside], check=True)
        yield ["nsenter", f"--net=/run/netns/{space}"]
    finally:
        subprocess.run(["sh", "-c", gone], capture_output=True)
        outside.down()


def program(kind: Kind, place: str) -> list[str]:
    """Return the engine's command line; its socket and all that it keeps are in ``place``."""
    socket, data = f"{place}/engine.sock", f"{place}/data"
    if kind.program == "podman":
        options = ["--cgroup-manager=cgroupfs", f"--root={data}", f"--runroot={place}/run"]
        command = ["python3", "-c", ON_DEMAND, socket, "podman", *options, "system", "service"]
    else:
        command = ["dockerd", f"--config-file={place}/daemon.json", f"--data-root={data}"]
        command += [
            f"--exec-root={place}/run",
            f"--pidfile={place}/docker.pid",
            f"--host=unix://{socket}",
        ]
    if not kind.rootless:
        return command
    user = [f"HOME=/home/{LEARNER}", f"XDG_RUNTIME_DIR={place}", "PATH=/usr/sbin:/usr/bin"]
    user = ["setpriv", f"--reuid={LEARNER}", f"--regid={LEARNER}", "--init-groups", "env", *user]
    if kind.program == "podman":
        # Without cgroups of version 2, containers end with the service: this one stays.
        return [*user, *command, "--time=0"]
    kit = ["--net=slirp4netns", "--disable-host-loopback", "--port-driver=builtin"]
    kit += ["--copy-up=/etc", "--copy-up=/run", "--propagation=rslave"]
    inside = 'rm -rf /run/docker /run/containerd /run/xtables.lock; exec "$@"'
    command += ["--exec-opt=native.cgroupdriver=cgroupfs"]
    return [*user, "rootlesskit", *kit, "sh", "-c", inside, "dockerd", *command]


@dataclass(frozen=True)
class Place:
    """Where programs run beside an engine: in its network, with the variables to reach it."""

    enter: Sequence[str]
    variables: Mapping[str, str]

    def python(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run Python there: ``python("-m", "labapp", "doctor")``."""
        command = [*self.enter, sys.executable, *words]
        return subprocess.run(command, env=self.variables, cwd=REPOSITORY, text=True, **options)


@contextlib.contextmanager
def running(name: str, folder: Path) -> Iterator[Place]:
    """Run an engine whose root is in a folder, with nothing in it."""
    kind, inside = KINDS[name], f"/srv/{name}"
    base = root(kind, folder)
    place = base / inside[1:]
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "daemon.json").write_text(json.dumps(kind.settings))
    if kind.rootless:
        subprocess.run(["chroot", base, "chown", "-R", LEARNER, inside], check=True)
    with network(name, folder) as enter, (place / "log").open("wb") as log:
        command = [*enter, "unshare", "--mount", "--pid", "--fork", "--kill-child"]
        command += ["sh", "-ec", ENTER, "enter", str(base)]
        process = subprocess.Popen(
            [*command, *program(kind, inside)],
            env={**os.environ, **kind.variables},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        socket = place / "engine.sock"
        try:
            wait_until(lambda: process.poll() is not None or socket.is_socket(), seconds=60)
            if not socket.is_socket():
                raise SystemExit(f"{name} does not run:\n{(place / 'log').read_text()[-2000:]}")
            yield Place(enter, _variables(kind, base, place))
        finally:
            # With a rootless engine's kit, its engine ends as well.
            subprocess.run(["pkill", "-TERM", "-g", str(process.pid)])
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            subprocess.run(["pkill", "-KILL", "-g", str(process.pid)])
            process.wait()
            shutil.rmtree(place, ignore_errors=True)


def _variables(kind: Kind, base: Path, place: Path) -> dict[str, str]:
    plugins, programs = place / "config/cli-plugins", place / "programs"
    plugins.mkdir(parents=True)
    programs.mkdir()
    shutil.copy2(base / "usr/bin/docker", programs)
    for plugin in (base / "usr/libexec/docker").glob("cli-plugins/*"):
        shutil.copy2(plugin, plugins)
    variables = {
        "DOCKER_HOST": f"unix://{place}/engine.sock",
        "DOCKER_CONFIG": str(plugins.parent),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "LABAPP_STATE": str(place / "state"),
        "LABAPP_BASES": "auto",
    }
    if kind.rootless:
        variables["XDG_CONFIG_HOME"] = f"/home/{LEARNER}/.config"
    # A test that runs this is none of the tests that run there.
    mine = {key: text for key, text in os.environ.items() if not key.startswith("PYTEST_")}
    return mine | variables


def course(name: str, folder: Path, saved: Path, chapters: Sequence[str]) -> dict[str, str]:
    """Run chapters on an engine; return what came of each, by its number."""
    with running(name, folder) as place:
        began = time.monotonic()
        place.python("-m", "labapp", "bundle", "load", str(saved), check=True)
        place.python("-m", "labapp", "doctor")
        print(f"\n{name}: ready after {time.monotonic() - began:.0f} s", flush=True)
        report = folder / f"{name}.xml"
        place.python("-m", "pytest", *course_tests(chapters), f"--junitxml={report}")
        place.python("-m", "labapp", "reset", "--yes")
    return dict(_outcomes(report))


def course_tests(chapters: Sequence[str]) -> list[str]:
    """Return pytest's arguments for chapters, each untouched and solved."""
    which = " or ".join(f"{number}_" for number in chapters)
    options = ["-q", "--tb=short", "--color=no"]
    return ["tests/notebooks/test_chapters.py", "-k", f"every_check and ({which})", *options]


def _outcomes(report: Path) -> Iterator[tuple[str, str]]:
    for case in ET.parse(report).getroot().iter("testcase"):
        number = re.search(r"\[(\d\d)_", case.get("name", ""))
        fault = case.find("failure") if case.find("error") is None else case.find("error")
        lines = re.sub(r"#x1B\[[0-9;]*m", "", (fault is not None and fault.text) or "").split("\n")
        told = next((each.strip("E ") for each in reversed(lines) if each.strip("E ")), "")
        seconds = f"{float(case.get('time', 0)):.0f} s"
        yield number[1] if number else "?", f"fault ({told})" if told else seconds


def record(name: str, folder: Path, saved: Path) -> None:
    """Write down what an engine says, for the unit tests: builds, pushes and pulls as they came."""
    with running(name, folder) as place:
        place.python("-m", "labapp", "bundle", "load", str(saved), check=True)
        place.python(__file__, "--here", name, check=True)


def record_here(name: str) -> None:
    """Record the engine that answers here."""
    bench, target = prepare(State.open()), RECORDED / name
    api = bench.engine.client.api
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    about = {"version": api.version(api_version=False), "info": api.info()}
    about["info"] = {key: about["info"].get(key) for key in ABOUT}
    (target / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    with tempfile.TemporaryDirectory() as made:
        context = Path(made)
        for each in ("a.txt", "one", "c.txt", "two"):
            (context / each).write_text(each * 50_000)
        _record_builds(bench, target, context)
        _record_transfers(bench, target, context)


def _record_builds(bench: Bench, target: Path, context: Path) -> None:
    """Record what ``docker build`` prints; the classic builder's two streams are kept apart."""
    engine, address = bench.engine, bench.registry.address
    command = ["docker", "build", "-t", f"{address}/test/shop:1", "--label=labapp.lab=0123abcd"]
    command += ["--build-arg", f"BASE={bench.base(SLIM)}"]
    command += ["--build-arg", f"NONE={address}/none/such:1"]
    together = None if engine.builder == "classic" else subprocess.STDOUT
    for file in sorted(RECORDED.glob("*.Dockerfile")):
        for label in (file.stem, f"{file.stem}-again")[: 2 if file.stem == "build" else 1]:
            ran = subprocess.run(
                [*command, "-f", str(file), str(context)],
                env=engine.environment() | build.settings(engine),
                stdout=subprocess.PIPE,
                stderr=together or subprocess.PIPE,
            )
            (target / f"{label}.txt").write_bytes(ran.stdout)
            if together is None:
                (target / f"{label}.err").write_bytes(ran.stderr)


def _record_transfers(bench: Bench, target: Path, context: Path) -> None:
    """Record what the engine answers to pushes and pulls of an image of two small layers."""
    engine, registry = bench.engine, bench.registry
    (context / "Dockerfile").write_text("FROM scratch\nCOPY c.txt /\nCOPY two /\n")
    names = {key: f"{registry.address}/test-{key}/{target.name}" for key in ("here", "elsewhere")}
    names["no-registry"] = "localhost:9/x/y"
    build.build(engine, context, tag=f"{names['here']}:1")
    for name in list(names.values())[1:]:
        transfer.tag(engine, f"{names['here']}:1", f"{name}:1")

    def forget() -> None:
        for name in names.values():
            with contextlib.suppress(LabError):
                transfer.remove(engine, f"{name}:1")

    def ask(label: str, path: str, **params: str) -> None:
        api = engine.client.api
        headers = {"X-Registry-Auth": base64.b64encode(b"{}").decode()}
        url = f"{api.base_url}/v{api.api_version}/images/{path}"
        with api.post(url, params=params, headers=headers, timeout=api.timeout) as answer:
            lines = [json.dumps({"http_status": answer.status_code}), *answer.text.splitlines()]
            (target / f"{label}.jsonl").write_text("\n".join(lines) + "\n")

    def pull(label: str) -> None:
        ask(label, "create", fromImage=names["here"], tag="1")

    ask("push", f"{names['here']}/push", tag="1")
    ask("push-again", f"{names['here']}/push", tag="1")
    ask("push-elsewhere", f"{names['elsewhere']}/push", tag="1")
    ask("push-no-registry", f"{names['no-registry']}/push", tag="1")
    ask("push-no-image", f"{names['here']}/push", tag="nope")
    layers = [layer.digest for layer in registry.image(f"{names['here']}:1").manifest.layers]
    (target / "layers.json").write_text(json.dumps(layers) + "\n")
    pull("pull-again")
    for name in names.values():
        engine.client.images.remove(f"{name}:1")
    pull("pull-from-the-build-cache")
    forget()
    pull("pull")
    forget()
    flip = f"printf labapp | dd of={stored_at(layers[1])} bs=1 seek=50 conv=notrunc"
    bench.server.storage(["sh", "-c", flip])
    pull("pull-altered")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the course on engines, and print what came of it; 1 if a chapter has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, prog="labapp test --engine")
    parser.add_argument("names", nargs="+", choices=[*KINDS, "all"], metavar="NAME")
    parser.add_argument("--record", action="store_true", help="write down what they say instead")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--chapters", nargs="+", default=CHAPTERS, metavar="CHAPTER")
    asked = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the engine is ended, too
    names = list(KINDS) if "all" in asked.names else asked.names
    if asked.here:
        record_here(names[0])
        return 0
    state = State.open()
    folder = state.path("engines")
    folder.mkdir(exist_ok=True)
    saved = folder / "bases.zip"
    if not saved.exists():
        bundle.save(prepare(state), saved)
    if asked.record:
        for name in names:
            record(name, folder, saved)
        return 0
    came = {name: course(name, folder, saved, asked.chapters) for name in names}
    width = max(map(len, names))
    print("\n" + " " * width, *(f"{number:>6}" for number in asked.chapters))
    for name, found in came.items():
        cells = [found.get(number, "not run") for number in asked.chapters]
        print(f"{name:<{width}}", *(f"{'FAULT' if 'fault' in c else c:>6}" for c in cells))
    faults = [
        f"{name} {number}: {told}"
        for name, found in came.items()
        for number, told in found.items()
        if "fault" in told
    ]
    print(*faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
