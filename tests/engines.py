"""The course on other engines, each of Debian's packages and in a network of its own.

``python3 -m labapp test --engine podman-5 docker-28`` calls it. Of each engine, the root is made
once and kept in the folder of the tests' lab; the chapters run beside it, as on its own machine:
untouched, and solved. At the end there is a table of what each chapter came to.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labapp import bundle, feedback
from labapp.bench import prepare
from labapp.journey import build, transfer
from labapp.journey.bases import SLIM
from labapp.machine.ports import wait_until
from labapp.state import State

REPOSITORY = Path(__file__).parents[1]
RECORDED = Path(__file__).parent / "unit" / "engines"
ABOUT = {"DockerRootDir", "DriverStatus", "SecurityOptions", "ServerVersion"}
CHAPTERS = tuple(f"0{number}" for number in range(9))
LEARNER = "learner"

PACKAGES = {
    "bookworm": "docker.io podman netavark aardvark-dns uidmap slirp4netns rootlesskit",
    "trixie": "docker.io docker-cli docker-buildx podman netavark aardvark-dns nftables uidmap "
    "slirp4netns rootlesskit passt",
    "sid": "docker.io docker-cli docker-buildx",
}
"""What each release of Debian has of engines."""

ALWAYS = "iptables ca-certificates iproute2 procps"

# The root must be a mount point and the root of its mount namespace: else no engine in it unpacks
# an image, and no ordinary user gets a namespace of users. A tap device is for rootless ones.
ENTER = """
mount --bind "$1" "$1"; for each in proc sys dev; do mount --rbind /$each "$1/$each"; done
cd "$1"; shift; mkdir -p old; pivot_root . old; cd /
[ -e /run/tun ] || mknod -m 666 /run/tun c 10 200
[ ! -e /dev/net/tun ] || mount --bind /run/tun /dev/net/tun
umount --lazy /old; exec "$@"
"""

RUNC = """#!/bin/sh
for word; do
  case $before in
    -b | --bundle) sed -i 's/"rlimits":\\[[^]]*\\],//' "$word/config.json" ;;
  esac
  before=$word
done
exec runc "$@"
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


def root(suite: str, folder: Path) -> Path:
    """Return the folder with a release of Debian and its engines; it is made once."""
    made = folder / suite
    if not (made / "etc/hosts").exists():
        shutil.rmtree(made, ignore_errors=True)
        feedback.say(f"Making a root of Debian '{suite}' with its engines.")
        packages = f"{ALWAYS} {PACKAGES[suite]}".split()
        # The signed date of what is not released yet may have passed.
        old = 'Acquire::Check-Valid-Until "false"'
        command = ["mmdebstrap", "--variant=minbase", f"--aptopt={old}"]
        command += [f"--include={','.join(packages)}", suite, str(made)]
        subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        subprocess.run(["chroot", made, "useradd", "--create-home", LEARNER], check=True)
        for name in ("resolv.conf", "hosts"):
            shutil.copy(f"/etc/{name}", made / "etc")
    return made


@contextlib.contextmanager
def network(name: str, number: int) -> Iterator[list[str]]:
    """Make a network namespace with a way out; give the command that enters it."""
    space, link, block = f"labapp-{name}", f"lab-e{number}", f"10.127.{number}"
    rules = [
        f"POSTROUTING --table nat --source {block}.0/30 --jump MASQUERADE",
        f"FORWARD --source {block}.0/30 --jump ACCEPT",
        f"FORWARD --destination {block}.0/30 --jump ACCEPT",
    ]
    up = f"""
        ip netns add {space}
        ip link add {link} type veth peer name eth0 netns {space}
        ip address add {block}.1/30 dev {link}
        ip link set {link} up
        ip -n {space} address add {block}.2/30 dev eth0
        ip -n {space} link set eth0 up
        ip -n {space} link set lo up
        ip -n {space} route add default via {block}.1
        echo 1 > /proc/sys/net/ipv4/ip_forward
    """
    mark = f"--match comment --comment {space}"
    down = [f"iptables --wait --delete {rule} {mark}" for rule in rules]
    down += [f"ip link delete {link}", f"ip netns delete {space}"]
    subprocess.run(["sh", "-c", "; ".join(down)], capture_output=True)
    try:
        up += "\n".join(f"iptables --wait --append {rule} {mark}" for rule in rules)
        subprocess.run(["sh", "-ec", up], check=True)
        yield ["nsenter", f"--net=/run/netns/{space}"]
    finally:
        subprocess.run(["sh", "-c", "; ".join(down)], capture_output=True)


def program(kind: Kind, place: str) -> list[str]:
    """Return the engine's command line; its socket and all that it keeps are in ``place``."""
    socket, data = f"unix://{place}/engine.sock", f"{place}/data"
    if kind.program == "podman":
        options = ["--cgroup-manager=cgroupfs", f"--root={data}", f"--runroot={place}/run"]
        command = ["podman", *options, "system", "service", "--time=0", socket]
    else:
        command = ["dockerd", f"--config-file={place}/daemon.json", f"--data-root={data}"]
        command += [f"--exec-root={place}/run", f"--pidfile={place}/docker.pid", f"--host={socket}"]
    if not kind.rootless:
        return command
    user = [f"HOME=/home/{LEARNER}", f"XDG_RUNTIME_DIR={place}", "PATH=/usr/sbin:/usr/bin"]
    user = ["setpriv", f"--reuid={LEARNER}", f"--regid={LEARNER}", "--init-groups", "env", *user]
    if kind.program == "podman":
        return [*user, *command]
    kit = ["--net=slirp4netns", "--disable-host-loopback", "--port-driver=builtin"]
    kit += ["--copy-up=/etc", "--copy-up=/run", "--propagation=rslave"]
    inside = 'rm -rf /run/docker /run/containerd /run/xtables.lock; exec "$@"'
    command += ["--exec-opt=native.cgroupdriver=cgroupfs"]
    return [*user, "rootlesskit", *kit, "sh", "-c", inside, "dockerd", *command]


@contextlib.contextmanager
def running(name: str, folder: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Run an engine; give the command that enters its network, and the variables to reach it."""
    kind, inside = KINDS[name], f"/srv/{name}"
    base = root(kind.suite, folder)
    place = base / inside[1:]
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "daemon.json").write_text(json.dumps(kind.settings))
    _write_runtime(base)
    if kind.rootless:
        subprocess.run(["chroot", base, "chown", "-R", LEARNER, inside], check=True)
    with network(name, list(KINDS).index(name)) as enter, (place / "log").open("wb") as log:
        command = [*enter, "unshare", "--mount", "sh", "-ec", ENTER, "enter", str(base)]
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
            yield _beside(base, enter), _variables(kind, base, place)
        finally:
            # With a rootless engine's kit, its engine ends as well.
            subprocess.run(["pkill", "-TERM", "-g", str(process.pid)])
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            subprocess.run(["pkill", "-KILL", "-g", str(process.pid)])
            process.wait()


def _write_runtime(base: Path) -> None:
    """Have Podman ask for no limits: a machine in a machine may not set those that it asks for."""
    wrapper = base / "usr/local/bin/labapp-runc"
    wrapper.write_text(RUNC)
    wrapper.chmod(0o755)
    (base / "etc/containers").mkdir(exist_ok=True)
    (base / "etc/containers/containers.conf").write_text(
        '[engine]\nruntime = "lab"\n[engine.runtimes]\nlab = ["/usr/local/bin/labapp-runc"]\n'
    )


def _beside(base: Path, enter: Sequence[str]) -> list[str]:
    """Return the command before one that is to see the engine's network and settings."""
    mount = f"mkdir -p /etc/containers; mount --bind {base}/etc/containers /etc/containers"
    return [*enter, "unshare", "--mount", "sh", "-ec", f'{mount}; exec "$@"', "beside"]


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
        variables["XDG_CONFIG_HOME"] = str(base / "home" / LEARNER / ".config")
    return {**os.environ, **variables}


def course(name: str, folder: Path, saved: Path, chapters: Sequence[str]) -> dict[str, str]:
    """Run chapters on an engine; return what came of each, by its number."""
    with running(name, folder) as (beside, variables):
        lab = [*beside, sys.executable, "-m"]
        began = time.monotonic()
        for words in (["labapp", "bundle", "load", str(saved)], ["labapp", "doctor"]):
            subprocess.run([*lab, *words], env=variables, cwd=REPOSITORY)
        report = folder / f"{name}.xml"
        which = " or ".join(f"{number}_" for number in chapters)
        tests = ["tests/notebooks/test_chapters.py", "-k", f"every_check and ({which})"]
        options = ["-q", "--tb=short", "--color=no", f"--junitxml={report}"]
        print(f"\n{name}: ready after {time.monotonic() - began:.0f} s", flush=True)
        subprocess.run([*lab, "pytest", *tests, *options], env=variables, cwd=REPOSITORY)
        subprocess.run([*lab, "labapp", "reset", "--yes"], env=variables, cwd=REPOSITORY)
    return dict(_outcomes(report))


def _outcomes(report: Path) -> Iterator[tuple[str, str]]:
    for case in ET.parse(report).getroot().iter("testcase"):
        number = re.search(r"\[(\d\d)_", case.get("name", ""))
        fault = case.find("failure") if case.find("error") is None else case.find("error")
        told = "" if fault is None else (fault.text or "").strip().splitlines()[-1]
        seconds = f"{float(case.get('time', 0)):.0f} s"
        yield number[1] if number else "?", f"fault ({told})" if told else seconds


def record(name: str, folder: Path, saved: Path) -> None:
    """Write down what an engine says, for the unit tests: builds, pushes and pulls as they came."""
    with running(name, folder) as (beside, variables):
        lab = [*beside, sys.executable]
        load = [*lab, "-m", "labapp", "bundle", "load", str(saved)]
        subprocess.run(load, env=variables, cwd=REPOSITORY, check=True)
        subprocess.run([*lab, __file__, "--here", name], env=variables, cwd=REPOSITORY, check=True)


def record_here(name: str) -> None:
    """Record the engine that answers here."""
    bench, target = prepare(State.open()), RECORDED / name
    engine, api = bench.engine, bench.engine.client.api
    target.mkdir(exist_ok=True)
    about = {key: value for key, value in api.info().items() if key in ABOUT}
    version = api.version(api_version=False)
    (target / "about.json").write_text(json.dumps({"version": version, "info": about}, indent=1))
    context = target / "context"
    context.mkdir()
    tag = f"{bench.registry.address}/test/shop:1"
    settings = build.settings(engine)
    for pattern in sorted((RECORDED / "docker-20.10").glob("*.Dockerfile")):
        text = re.sub(r"localhost:\d+/base/python@\S+", str(bench.base(SLIM)), pattern.read_text())
        file = target / pattern.name
        file.write_text(text)
        for each in ("a.txt", "one"):
            (context / each).write_text(each * 50_000)
        command = ["docker", "build", "-t", tag, "-f", str(file), "--label=labapp.lab=0123abcd"]
        ran = subprocess.run(
            [*command, str(context)], env=engine.environment() | settings, capture_output=True
        )
        classic = engine.builder == "classic"
        file.with_suffix(".txt").write_bytes(ran.stdout if classic else ran.stdout + ran.stderr)
        if classic:
            file.with_suffix(".err").write_bytes(ran.stderr)
    shutil.rmtree(context)
    place, _, number = tag.rpartition(":")
    for label, act, again in (
        ("push", api.push, False),
        ("push-again", api.push, False),
        ("pull", api.pull, True),
        ("pull-again", api.pull, False),
    ):
        if again:
            transfer.remove(engine, tag)
        events = [json.dumps(event) for event in act(place, tag=number, stream=True, decode=True)]
        (target / f"{label}.jsonl").write_text("\n".join(events) + "\n")
    image = bench.registry.image(tag).manifest
    told = {"digest": image.digest, "layers": [layer.digest for layer in image.layers]}
    (target / "image.json").write_text(json.dumps(told))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the course on engines, and print what came of it; 1 if a chapter has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, prog="labapp test --engine")
    parser.add_argument("names", nargs="+", choices=[*KINDS, "all"], metavar="NAME")
    parser.add_argument("--record", action="store_true", help="write down what they say instead")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--chapters", nargs="+", default=CHAPTERS, metavar="CHAPTER")
    asked = parser.parse_args(argv)
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
