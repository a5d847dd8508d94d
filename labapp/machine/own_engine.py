"""The lab's own engine on Debian and Ubuntu: installed, started, found again, mended and stopped.

Its data, settings and log lie in ``engine/`` under the lab's state folder, its socket and pid file
in ``/run/labapp-ID``: a socket's path may have 107 bytes, which a state folder's may not leave. It
shares with another engine on this machine nothing but the kernel: its bridge, its addresses and its
containerd namespace are its own.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from socket import AddressFamily
from typing import TYPE_CHECKING, Any

import docker
import docker.errors

from labapp import feedback
from labapp.errors import EngineError
from labapp.machine import root
from labapp.machine.ports import wait_until
from labapp.state import State

if TYPE_CHECKING:
    import psutil

RECORD = "own_engine"
"""The state's file about this engine: its addresses, and whether it has run."""


def can_start() -> str | None:
    """Return why the lab can't start an engine on this machine, or None when it can."""
    if not Path("/proc/self/status").exists():
        return "an engine of its own runs on Linux only."
    if not is_installed() and (reason := root.why_no_packages()):
        return reason
    if reason := root.why_not_root():
        return reason
    if root.run_as_root(["unshare", "--mount", "--net", "true"]).returncode == 0:
        return None
    return "root may not mount or make networks here: a container without '--privileged'."


def is_installed() -> bool:
    """Tell whether the programs that an engine needs are on this machine."""
    return all(root.program(name) for name in ("dockerd", "ip"))


def install() -> None:
    """Install the distribution's engine."""
    feedback.say("No container engine answers: installing the distribution's docker.io.")
    # 'mount' and 'procps' bring umount and kill, which the smallest systems lack.
    needed = ["docker.io", "iproute2", "mount", "procps"]
    # Not every distribution has these, or has them in a package of their own.
    welcome = ["docker-cli", "docker-buildx", "iptables", "ca-certificates"]
    # An engine or a command line from elsewhere is left as it is.
    there = {"docker.io": root.program("dockerd"), "docker-cli": root.program("docker")}
    root.install_packages(
        [name for name in needed if not there.get(name)],
        welcome=[name for name in welcome if not there.get(name)],
    )


def socket(state: State) -> Path:
    """Return the path of the engine's socket, whether or not it runs."""
    return Path("/run", f"labapp-{state.lab_id}", "docker.sock")


def host(state: State) -> str | None:
    """Return the engine's address if this lab has ever started one, else None."""
    return f"unix://{socket(state)}" if state.read(RECORD).get("started") else None


def start(state: State) -> None:
    """Start the engine, or find it running; where it doesn't start, the end of its log is told."""
    with state.lock("engine"):
        if _answers(socket(state)) and _processes(state, "dockerd"):
            return
        _clear(state)
        network = choose(state.lab_id)
        record = {**state.read(RECORD), "block": str(network.block)}
        state.write(RECORD, record)
        network.up()
        _launch(state, network)
        state.write(RECORD, {**record, "started": True})


def stop(state: State) -> None:
    """Stop the engine, if there is one, with its containers and its bridge; its data stay."""
    if not state.read(RECORD):
        return
    with state.lock("engine"):
        if _processes(state, "dockerd"):
            feedback.say("Stopping the lab's own engine.")
        _clear(state)


def remove(state: State) -> None:
    """Stop the engine and delete all its data: every image, container and volume in it."""
    stop(state)
    root.run_as_root(["rm", "-rf", "--one-file-system", str(state.path("engine"))])
    state.path(f"{RECORD}.json").unlink(missing_ok=True)


def settings(state: State, network: Network) -> dict[str, Any]:
    """Return the engine's settings. Source: dockerd's reference, "Daemon configuration file"."""
    path = socket(state)
    pool = list(network.block.subnets())[1]  # for networks that are made later
    return {
        "hosts": [f"unix://{path}"],
        "group": str(os.getgid()),
        "data-root": str(state.path("engine", "data")),
        "exec-root": str(path.with_name("exec")),
        "pidfile": str(path.with_name("docker.pid")),
        "bridge": network.bridge,
        "default-address-pools": [{"base": str(pool), "size": 24}],
        "iptables": False,
        "ip6tables": False,
        "shutdown-timeout": 10,
    }


def _launch(state: State, network: Network) -> None:
    run, config = str(socket(state).parent), state.path("engine", "daemon.json")
    # Only the learner and root may reach the engine through it.
    root.run_as_root(["install", "-d", "-m", "0700", "-o", str(os.getuid()), run])
    config.write_text(json.dumps(settings(state, network), indent=2) + "\n", encoding="utf-8")
    proxies = [
        f"{name}={value}" for name, value in os.environ.items() if name.lower().endswith("_proxy")
    ]
    # The two namespaces have no working name in the settings file of every version.
    command = [
        "dockerd",
        f"--config-file={config}",
        f"--containerd-namespace={network.name}",
        f"--containerd-plugins-namespace={network.name}-plugins",
    ]
    feedback.command(root.as_root(command))
    log = state.path("engine", "engine.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            root.as_root(["env", f"PATH={root.search_path()}", *proxies, *command]),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    feedback.say("Starting the lab's own engine.")
    wait_until(lambda: process.poll() is not None or _answers(socket(state)), seconds=60)
    if not _answers(socket(state)):
        _clear(state)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n  ".join([line for line in lines if "level=info" not in line][-8:])
        raise EngineError(
            f"starting the lab's own engine: it does not answer. The end of '{log}':\n  {tail}\n"
            "Mend what it names, then start the lab again; or name an engine in DOCKER_HOST."
        )


def _clear(state: State) -> None:
    """End every process of this engine, and remove what a crash leaves: mounts, bridges, files."""
    run = socket(state).parent
    _end(state, "-TERM", "dockerd")
    # It takes its containers and its containerd with it, unless it was killed, or has to be.
    _end(state, "-KILL", "dockerd", "containerd")
    root.unmount([run / "exec", state.path("engine", "data")])
    # A pid file that a crash left names another process after a reboot.
    root.run_as_root(["rm", "-rf", "--one-file-system", str(run)])
    if block := state.read(RECORD).get("block"):
        Network(state.lab_id, ipaddress.IPv4Network(block)).down()


def _end(state: State, signal: str, *programs: str) -> None:
    if found := _processes(state, *programs):
        if signal == "-KILL":  # Containers are the children of their shims.
            found += [child for process in found for child in process.children()]
        root.run_as_root(["kill", signal, *(str(process.pid) for process in found)])
        wait_until(lambda: not _processes(state, *programs), seconds=45, every=0.05)


def _processes(state: State, *programs: str) -> list[psutil.Process]:
    """Return the engine's processes whose program's name begins so.

    Their command lines tell the lab's id; a pid file may be another process's by now.
    """
    import psutil

    name, found = f"labapp-{state.lab_id}", []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"]  # empty for one that ended and waits to be collected
        if line and Path(line[0]).name.startswith(programs) and name in " ".join(line[1:]):
            found.append(process)
    return found


def _answers(path: Path) -> bool:
    """Tell whether an engine answers at a socket: the SDK's client asks for its version."""
    with contextlib.suppress(docker.errors.DockerException):
        docker.APIClient(f"unix://{path}", version="auto", timeout=5).close()
        return True
    return False


@dataclass(frozen=True)
class Network:
    """A bridge and addresses of one lab's engine, which nothing else here uses.

    The engine runs without firewall rules of its own (``iptables: false``): two engines on one
    machine share the names of their chains, and the second to start would empty those of the
    first. What its containers need, a way out, is three rules that carry the lab's name.
    """

    lab_id: str
    block: ipaddress.IPv4Network

    @property
    def name(self) -> str:
        """What its rules and its containerd namespace are called."""
        return f"labapp-{self.lab_id}"

    @property
    def bridge(self) -> str:
        """Its network device, whose name may have 15 characters."""
        return f"lab{self.lab_id[:6]}"

    def up(self) -> None:
        """Make the bridge and the rules; it is told when containers will have no way out."""
        link = (
            f"ip link add name {self.bridge} type bridge && "
            f"ip address add {self.block[1]}/24 dev {self.bridge} && "
            f"ip link set dev {self.bridge} up"
        )
        made = root.run_as_root(["sh", "-c", link])
        if made.returncode != 0:
            raise EngineError(
                f"making the network '{self.bridge}' of the lab's engine: {made.stderr.strip()}. "
                "In a container, that needs '--privileged'."
            )
        ruled = root.run_as_root(["sh", "-c", " && ".join(self._rules("--append"))])
        if ruled.returncode != 0:
            feedback.say(f"Containers will have no way to the internet: {ruled.stderr}")

    def down(self) -> None:
        """Remove the rules, the bridge, and the bridges of networks inside the block."""
        inside = [name for name, address in _addresses() if address in self.block]
        links = [f"ip link delete dev {name}" for name in {self.bridge, *inside}]
        root.run_as_root(["sh", "-c", "; ".join([*self._rules("--delete"), *links])])

    def _rules(self, action: str) -> list[str]:
        mark = f"--match comment --comment {self.name}"
        answers = "--match conntrack --ctstate RELATED,ESTABLISHED"
        return [
            f"iptables --wait --table {table} {action} {chain} {mark} {rule}"
            for table, chain, rule in (
                ("nat", "POSTROUTING", f"-s {self.block} ! -d {self.block} -j MASQUERADE"),
                ("filter", "FORWARD", f"-s {self.block} -j ACCEPT"),
                ("filter", "FORWARD", f"-d {self.block} {answers} -j ACCEPT"),
            )
        ]


def choose(lab_id: str) -> Network:
    """Return the network for a lab's engine: the same each time while nothing else has it."""
    used = [address for _, address in _addresses()]
    # Of a block of 32 networks, the first is for the bridge, half are for networks made later.
    blocks = list(ipaddress.IPv4Network("10.128.0.0/9").subnets(new_prefix=19))
    first = int(lab_id, 16) % len(blocks)
    in_turn = [*blocks[first:], *blocks[:first]]
    return Network(lab_id, next(b for b in in_turn if not any(each in b for each in used)))


def _addresses() -> list[tuple[str, ipaddress.IPv4Address]]:
    import psutil

    return [
        (name, ipaddress.IPv4Address(found.address))
        for name, addresses in psutil.net_if_addrs().items()
        for found in addresses
        if found.family == AddressFamily.AF_INET
    ]
