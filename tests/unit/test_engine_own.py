"""What the lab's own engine is told, without one: addresses, settings, packages."""

from __future__ import annotations

import ipaddress
import os
import subprocess
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from labapp.engine import own_engine, own_network
from labapp.engine import packages as engine_packages
from labapp.errors import EngineError
from labapp.state import State
from labapp.system import apt_packages, processes


@pytest.mark.parametrize(
    "taken",
    [
        [],
        ["10.0.0.0/8"],
        ["10.0.0.0/8", "172.16.0.0/12"],
        ["172.17.0.0/16", "192.168.0.0/16", "10.128.0.0/10"],
        ["10.128.0.7/32"],
    ],
)
@pytest.mark.parametrize("start", [0, 1, 0xFFFFFFFF])
def test_a_free_block_overlaps_nothing(taken: list[str], start: int) -> None:
    networks = [IPv4Network(text) for text in taken]
    block = own_network.free_block(networks, start=start)
    assert block.is_private
    assert block.prefixlen == own_network.BLOCK_PREFIX
    assert not any(block.overlaps(network) for network in networks)


def test_the_block_of_before_is_kept_while_it_is_free() -> None:
    before = IPv4Network("10.200.32.0/19")
    assert own_network.free_block([], start=0, before=before) == before
    taken = [IPv4Network("10.200.40.0/24")]
    assert own_network.free_block(taken, start=0, before=before) != before


def test_no_block_is_free() -> None:
    taken = [IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
    with pytest.raises(EngineError, match=r"every private block is routed.*VPN"):
        own_network.free_block(taken, start=0)


def test_bridge_and_pool_share_the_block_and_nothing_else() -> None:
    network = own_network.choose("0123abcd")
    bridge = ipaddress.ip_interface(network.gateway).network
    pool = IPv4Network(network.pool)
    assert bridge.subnet_of(network.block)
    assert pool.subnet_of(network.block)
    assert not bridge.overlaps(pool)
    assert len(network.bridge) <= 15


def test_settings_share_nothing_with_the_systems_engine(tmp_path: Path) -> None:
    state = State.open(tmp_path)
    settings = own_engine.settings(state, own_network.choose(state.lab_id))
    inside = str(state.folder / "engine")
    for name in ("data-root", "exec-root", "pidfile"):
        assert settings[name].startswith(inside) or settings[name].startswith("/run/labapp-")
    assert settings["bridge"] == f"lab{state.lab_id[:6]}"
    assert settings["iptables"] is False


@pytest.mark.parametrize("length", [10, 69, 70, 71, 200])
def test_a_sockets_path_fits(length: int) -> None:
    folder = Path("/" + "x" * (length - len("//engine")))
    state = State(folder=folder, lab_id="0123abcd")
    run = own_engine.run_folder(state)
    assert len(str(run / "exec/containerd/containerd.sock.ttrpc")) <= 107
    assert (run == folder / "engine") == (length <= 69)


@pytest.mark.parametrize(
    ("offered", "installed", "wanted"),
    [
        # Debian 12: the command line comes with docker.io, and compose is of version 1.
        (
            {"docker.io": "20.10.24", "docker-compose": "1.29.2-3", "iptables": "1.8.9-2"},
            set(),
            {"iproute2", "mmdebstrap", "mount", "procps", "docker.io", "iptables"},
        ),
        # Debian 13
        (
            {"docker.io": "26", "docker-cli": "26", "docker-compose": "2.26.1-4"},
            set(),
            {
                "iproute2",
                "mmdebstrap",
                "mount",
                "procps",
                "docker.io",
                "docker-cli",
                "docker-compose",
            },
        ),
        # Ubuntu, where the command line is there already
        (
            {"docker.io": "27", "docker-buildx": "0.14", "docker-compose-v2": "2.27"},
            {"docker"},
            {
                "iproute2",
                "mmdebstrap",
                "mount",
                "procps",
                "docker.io",
                "docker-buildx",
                "docker-compose-v2",
            },
        ),
        # an engine from elsewhere is not replaced
        (
            {"docker.io": "27", "docker-compose": "1:2.1"},
            {"dockerd", "docker"},
            {"iproute2", "mmdebstrap", "mount", "procps", "docker-compose"},
        ),
    ],
)
def test_the_packages_that_a_distribution_has(
    offered: dict[str, str], installed: set[str], wanted: set[str]
) -> None:
    found = engine_packages.wanted_packages(offered, installed=installed, ubuntu=False)
    assert set(found) == wanted
    ubuntu = engine_packages.wanted_packages(offered, installed=installed, ubuntu=True)
    assert set(ubuntu) == wanted | {"debian-archive-keyring"}


def test_what_apt_offers_is_read_from_its_policy() -> None:
    text = (
        "docker.io:\n  Installed: (none)\n  Candidate: 20.10.24+dfsg1-1\n  Version table:\n"
        "     20.10.24+dfsg1-1 500\n"
        "docker-buildx:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n"
        "iptables:\n  Installed: 1.8.9-2\n  Candidate: 1.8.9-2\n  Version table:\n"
    )
    assert apt_packages.parse_policy(text) == {
        "docker.io": "20.10.24+dfsg1-1",
        "iptables": "1.8.9-2",
    }


def test_a_process_is_known_by_program_and_argument(tmp_path: Path) -> None:
    mark = str(tmp_path)
    command = ["sh", "-c", "echo ready; read line", mark]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        # Linux shows no arguments yet when a process only just begins.
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert processes.running("sh", mark) == [process.pid]
        assert processes.running("dockerd", mark) == []
        assert processes.running("sh", mark[:-1]) == []
        assert process.pid in processes.children(os.getpid())
        processes.end([process.pid])
        assert processes.running("sh", mark) == []
