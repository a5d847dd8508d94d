"""What the lab's own engine is told, without one: addresses, settings, packages."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from labapp.machine import own_engine, root
from labapp.state import State


def block_of(lab_id: str, used: str, monkeypatch: pytest.MonkeyPatch) -> ipaddress.IPv4Network:
    """The block that a lab's engine gets on a machine with one address."""
    link = SimpleNamespace(family=own_engine.sockets.AF_INET, address=used)
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"eth0": [link]})
    return own_engine.choose(lab_id).block


@pytest.mark.parametrize("lab_id", ["00000000", "0123abcd", "ffffffff"])
def test_a_block_is_kept_while_nothing_else_has_it(
    lab_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = block_of(lab_id, "127.0.0.1", monkeypatch)
    assert block == block_of(lab_id, "192.168.0.7", monkeypatch)
    assert block != block_of("00000001", "127.0.0.1", monkeypatch)
    other = block_of(lab_id, str(block[300]), monkeypatch)
    assert block.is_private and other.is_private and not block.overlaps(other)


def test_settings_share_nothing_with_the_systems_engine(tmp_path: Path) -> None:
    state = State.open(tmp_path.joinpath(*["a-rather-long-name"] * 10))
    network = own_engine.choose(state.lab_id)
    settings = own_engine.settings(state, network)
    assert settings["data-root"].startswith(str(state.folder))
    for name in ("exec-root", "pidfile"):
        assert state.lab_id in settings[name]
    # A socket's path ends at 107 bytes, also that of the longest inside.
    assert len(os.fsencode(f"{settings['exec-root']}/containerd/containerd.sock.ttrpc")) <= 107
    assert settings["hosts"] == [f"unix://{own_engine.socket(state)}"]
    assert settings["bridge"] == network.bridge and len(network.bridge) <= 15
    assert settings["iptables"] is False
    [pool] = settings["default-address-pools"]
    assert ipaddress.IPv4Network(pool["base"]).subnet_of(network.block)
    assert network.block[1] not in ipaddress.IPv4Network(pool["base"])


@pytest.mark.parametrize(
    ("there", "ubuntu", "needed", "welcome"),
    [
        (set(), False, {"docker.io"}, {"docker-cli"}),
        (set(), True, {"docker.io", "debian-archive-keyring"}, {"docker-cli"}),
        ({"docker"}, False, {"docker.io"}, set()),
        # An engine from elsewhere is not replaced.
        ({"dockerd", "docker"}, False, set(), set()),
    ],
)
def test_the_packages_to_install(
    there: set[str],
    ubuntu: bool,
    needed: set[str],
    welcome: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(root, "program", lambda name: name if name in there else None)
    monkeypatch.setattr(root, "distribution", lambda: {"debian", *({"ubuntu"} if ubuntu else ())})
    monkeypatch.setattr(
        root, "install_packages", lambda names, *, welcome: asked.append((set(names), set(welcome)))
    )
    own_engine.install()
    always = {"iproute2", "mmdebstrap", "mount", "procps"}
    if_there_is = {"docker-buildx", "iptables", "ca-certificates"}
    assert asked == [(always | needed, if_there_is | welcome)]
