"""The network of the lab's own engine: a bridge and addresses that nothing else here uses.

The engine runs without firewall rules of its own (``iptables: false``): two engines on one machine
share the names of their chains, and the second to start would empty those of the first. What its
containers need, a way out, is two rules that carry the lab's name.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labapp.errors import EngineError
from labapp.system.privileges import run_as_root

BLOCK_PREFIX = 19
"""A block of 32 networks of 256 addresses: the first for the bridge, half for other networks."""


@dataclass(frozen=True)
class Network:
    """The addresses of one lab's engine.

    Attributes:
        name: what its rules are marked with.
        bridge: the name of its bridge, at most 15 characters.
        block: all addresses that it uses.
    """

    name: str
    bridge: str
    block: ipaddress.IPv4Network

    @property
    def gateway(self) -> str:
        """The bridge's own address, with its prefix length."""
        first = next(self.block.subnets(new_prefix=24))
        return f"{first[1]}/24"

    @property
    def pool(self) -> str:
        """The addresses for networks that are made later, one for each compose project."""
        return str(list(self.block.subnets(prefixlen_diff=1))[1])

    def up(self) -> str | None:
        """Make the bridge and the rules, as far as they are missing.

        Returns:
            None, or why the containers have no way out of this machine.

        Raises:
            EngineError: the bridge could not be made.
        """
        if not Path("/sys/class/net", self.bridge).exists():
            _ip(["link", "add", "name", self.bridge, "type", "bridge"])
        if self.gateway not in _addresses(self.bridge):
            _ip(["address", "add", self.gateway, "dev", self.bridge])
        _ip(["link", "set", "dev", self.bridge, "up"])
        for table, chain, rule in self._rules():
            if _iptables(table, "--check", chain, rule) is not None:
                problem = _iptables(table, "--append", chain, rule)
                if problem is not None:
                    return problem
        return None

    def down(self) -> None:
        """Remove the rules, the bridge, and the bridges of networks inside the block."""
        for table, chain, rule in self._rules():
            while _iptables(table, "--delete", chain, rule) is None:
                pass
        for link in _json(["-4", "address", "show", "type", "bridge"]):
            for address in link.get("addr_info", []):
                if ipaddress.ip_address(address["local"]) in self.block:
                    _ip(["link", "delete", "dev", link["ifname"]])
        if Path("/sys/class/net", self.bridge).exists():
            _ip(["link", "delete", "dev", self.bridge])

    def _rules(self) -> list[tuple[str, str, list[str]]]:
        mark = ["-m", "comment", "--comment", self.name]
        inside = str(self.block)
        answers = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
        return [
            ("nat", "POSTROUTING", ["-s", inside, "!", "-d", inside, *mark, "-j", "MASQUERADE"]),
            ("filter", "FORWARD", ["-s", inside, *mark, "-j", "ACCEPT"]),
            ("filter", "FORWARD", ["-d", inside, *answers, *mark, "-j", "ACCEPT"]),
        ]


def choose(lab_id: str, *, before: str | None = None) -> Network:
    """Return the network for a lab's engine.

    Args:
        lab_id: the lab's id, which names the bridge.
        before: the block that the engine used before; kept when it is still free.

    Raises:
        EngineError: no private block of addresses is free.
    """
    bridge = f"lab{lab_id[:6]}"
    name = f"labapp-{lab_id}"
    old = ipaddress.IPv4Network(before) if before else None
    block = free_block(_taken(except_for=bridge, within=old), start=int(lab_id, 16), before=old)
    return Network(name=name, bridge=bridge, block=block)


def free_block(
    taken: Iterable[ipaddress.IPv4Network],
    *,
    start: int,
    before: ipaddress.IPv4Network | None = None,
) -> ipaddress.IPv4Network:
    """Return a private block of addresses that overlaps none of those taken.

    Args:
        taken: networks that are routed or assigned on this machine.
        start: where to begin, so that two labs that choose at once rarely choose the same.
        before: a block that is taken again if it is free.

    Raises:
        EngineError: every block is taken.
    """
    used = list(taken)
    if before is not None and not any(before.overlaps(other) for other in used):
        return before
    for area in ("10.128.0.0/9", "172.16.0.0/12", "192.168.0.0/16"):
        blocks = list(ipaddress.IPv4Network(area).subnets(new_prefix=BLOCK_PREFIX))
        for place in range(len(blocks)):
            block = blocks[(start + place) % len(blocks)]
            if not any(block.overlaps(other) for other in used):
                return block
    raise EngineError(
        "choosing addresses for the lab's engine: every private block is routed on this machine. "
        "Disconnect a VPN, or name another engine in DOCKER_HOST."
    )


def _taken(*, except_for: str, within: ipaddress.IPv4Network | None) -> list[ipaddress.IPv4Network]:
    """Return what is routed, assigned or asked for names, but for the lab's own bridges."""
    found = []
    for route in _json(["-4", "route", "show", "table", "all"]):
        destination = route.get("dst", "default")
        if destination == "default" or route.get("dev") == except_for:
            continue
        network = ipaddress.IPv4Network(destination, strict=False)
        # A network that an earlier run of this engine made, and that a crash left behind.
        if within is not None and network.subnet_of(within) and _is_bridge(route.get("dev", "")):
            continue
        found.append(network)
    try:
        servers = Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace")
    except OSError:
        servers = ""
    pattern = re.compile(r"^nameserver\s+(\d+(?:\.\d+){3})\s*$", re.MULTILINE)
    return found + [ipaddress.IPv4Network(address) for address in pattern.findall(servers)]


def _is_bridge(name: str) -> bool:
    return Path("/sys/class/net", name, "bridge").exists()


def _addresses(device: str) -> list[str]:
    return [
        f"{address['local']}/{address['prefixlen']}"
        for link in _json(["-4", "address", "show", "dev", device])
        for address in link.get("addr_info", [])
    ]


def _json(arguments: Sequence[str]) -> list[dict[str, Any]]:
    found = json.loads(run_as_root(["ip", "-json", *arguments]).stdout or "[]")
    # iproute2 prints an empty object for what its filter left out.
    return [entry for entry in found if entry]


def _ip(arguments: Sequence[str]) -> None:
    answer = run_as_root(["ip", *arguments])
    if answer.returncode != 0:
        raise EngineError(
            f"setting up the network of the lab's engine: 'ip {' '.join(arguments)}': "
            f"{answer.stderr.strip()}. In a container, that needs '--privileged'."
        )


def _iptables(table: str, action: str, chain: str, rule: Sequence[str]) -> str | None:
    """Run iptables; return None, or what it complained about."""
    answer = run_as_root(["iptables", "--wait", "--table", table, action, chain, *rule])
    return None if answer.returncode == 0 else answer.stderr.strip() or "iptables failed"
