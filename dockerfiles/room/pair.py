"""One learner's pair of containers: the lab, and beside it, in the same network, an engine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker.errors
from dockerspawner import DockerSpawner
from jupyterhub.utils import wait_for_server
from traitlets import Callable, Dict, Float, Integer, Unicode

LAB_RIGHTS: dict[str, Any] = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]}
"""The lab's container is a program like any other: it needs no right at all."""


def engine_rights(trust: str) -> dict[str, Any]:
    """Return what an engine's container may do, by the name of a trust level.

    That is ``privileged``; ``capabilities``, for machines that have not got all that this would
    give; or else a runtime that keeps the container's root from the machine's: ``sysbox-runc``.
    """
    if trust == "privileged":
        return {"privileged": True}
    if trust == "capabilities":
        return {
            "cap_add": ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "MKNOD", "SETFCAP"],
            "security_opt": ["seccomp=unconfined", "apparmor=unconfined"],
            "device_cgroup_rules": ["b 7:* rwm", "c 10:237 rwm"],
        }
    return {"runtime": trust}


@functools.cache
def turns(count: int) -> asyncio.Semaphore:
    """Return what so many may hold at once; the same each time."""
    return asyncio.Semaphore(count)


class Pair(DockerSpawner):
    """Starts a learner's lab as DockerSpawner does, and an engine beside it; both go together.

    Three volumes outlast them: the learner's home, the engine's data, and the one for the socket.
    """

    engine_image = Unicode(config=True, help="The image of the engine.")
    engine_memory = Unicode("2G", config=True, help="What the engine and all in it may take.")
    disk = Unicode("12G", config=True, help="What the engine's data may take; empty: no limit.")
    trust = Unicode("privileged", config=True, help="What the engine may do: see engine_rights.")
    pids = Integer(1024, config=True, help="How many processes each of the two may have.")
    labels = Dict(config=True, help="The labels of all that is made.")
    engine_environment = Callable(dict, config=True, help="Returns more of its variables.")
    engine_cpus = Float(2.0, config=True, help="How many processors the engine may use.")

    # DockerSpawner's own has one thread: who stops would keep all others waiting.
    _executor = ThreadPoolExecutor(8)

    at_once = Integer(3, config=True, help="How many pairs start at the same time; others wait.")

    async def start(self) -> tuple[str, int]:
        """Start the pair in its turn, which lasts until the lab answers.

        The hub's own limit would send the learner away, to try again.
        """
        async with turns(self.at_once):
            place = await super().start()
            with contextlib.suppress(TimeoutError):  # the hub tells that; start.sh gives up before
                await wait_for_server(*place, timeout=75)
            return place

    def volume(self, what: str) -> str:
        """Return a volume's name: ``home``, ``engine`` or ``socket``."""
        return f"{self.object_name}--{what}"  # no name of a learner has two dashes

    @property
    def engine_name(self) -> str:
        """The name of the engine's container."""
        return f"{self.object_name}--engine"

    def engine_settings(self) -> dict[str, Any]:
        """Return how the engine's container is made, in the SDK's words."""
        rights = engine_rights(self.trust)
        settings = self.client.create_host_config(
            network_mode=f"container:{self.object_id}",
            binds=[f"{self.volume('engine')}:/engine", f"{self.volume('socket')}:/run/lab"],
            # It comes back by itself; the lab beside it, and its network, stay.
            restart_policy={"Name": "unless-stopped"},
            mem_limit=self.engine_memory,
            memswap_limit=self.engine_memory,
            cpu_period=100_000,
            cpu_quota=int(self.engine_cpus * 100_000),
            pids_limit=self.pids,
            **rights,
        )
        if self.trust == "capabilities":  # "systempaths=unconfined", which is the command line's
            settings |= {"MaskedPaths": [], "ReadonlyPaths": []}
        return {
            "image": self.engine_image,
            "name": self.engine_name,
            "labels": self.labels,
            "environment": {
                "DISK": self.disk if "runtime" not in rights else "",
                **self.engine_environment(),
            },
            "host_config": settings,
        }

    async def create_object(self) -> Any:
        """Make the volumes and the lab's container."""
        for what, place in (("home", "/home/learner"), ("socket", "/run/lab"), ("engine", "")):
            await self.docker("create_volume", self.volume(what), labels=self.labels)
            if place:
                self.volumes[self.volume(what)] = place
        self.extra_create_kwargs = {"labels": self.labels}
        limits = {"pids_limit": self.pids, "memswap_limit": self.mem_limit}
        self.extra_host_config = {**LAB_RIGHTS, **limits}
        # A runtime that keeps the engine's root apart joins no network of another runtime's.
        if runtime := engine_rights(self.trust).get("runtime"):
            self.extra_host_config["runtime"] = runtime
        await self.remove_engine()
        return await super().create_object()

    async def start_object(self) -> None:
        """Start the lab, whose network the engine then joins."""
        await super().start_object()
        await self.docker("create_container", **self.engine_settings())
        await self.docker("start", self.engine_name)

    async def stop_object(self) -> None:
        """End the engine, then the lab."""
        await self.remove_engine()
        await super().stop_object()

    async def run_post_stop_hook(self) -> None:
        """End the engine also where the lab ended by itself: then nobody stops the pair."""
        await self.remove_engine()

    async def remove_engine(self) -> None:
        """Stop the engine, in order, and remove its container; none is fine."""
        with contextlib.suppress(docker.errors.NotFound):
            await self.docker("stop", self.engine_name, timeout=10)
            await self.docker("remove_container", self.engine_name, force=True, v=True)
