"""A room of learners: a hub in a container, which gives each of them a lab and an engine.

What the hub is told is in ``room/room.json`` in the state folder; what it does with it, in
``dockerfiles/room``. Names, passwords and receipts are in that folder too, homes in volumes.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import socket
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker.errors
import requests
from docker.models.containers import Container
from urllib3.exceptions import InsecureRequestWarning

from labapp import bundle as bundles
from labapp.bench import Bench
from labapp.errors import LabError, NotInRegistry
from labapp.journey import bases, wheels
from labapp.journey.build import build
from labapp.journey.run import discard
from labapp.journey.transfer import pull, push
from labapp.machine.engine import Engine
from labapp.machine.ports import free_port, wait_until
from labapp.private import service
from labapp.private.accounts import Accounts
from labapp.private.registry import PrivateRegistry, bridge_address, make_certificates
from labapp.registry.server import RegistryServer
from labapp.state import REPOSITORY, ROLE_LABEL, State, write_file

FOLDER = REPOSITORY / "dockerfiles" / "room"
EVERYWHERE = "0.0.0.0"
CLASS = "class"
"""What kind of registry the class's is."""

TOKENS = 10102
"""The port in the hub's container at which the registry of the class sends for tokens."""

SETTINGS: Mapping[str, Any] = {
    "teacher": "teacher",
    "class_password": "",
    "list_only": False,
    "learners": 30,
    "memory": "1G",
    "engine_memory": "2G",
    "cpus": 2.0,
    "disk": "12G",
    "spawns": 3,
    "idle_minutes": 90,
    "trust": "",
    "port": 8000,
    "bind": EVERYWHERE,
    "url": "",
    "certificate": "",
}
"""What a room is told, unless somebody says otherwise; what was said is kept."""

_START = "'python3 -m labapp room start' starts it."


@dataclass(frozen=True)
class Room:
    """The room of one lab; ``state`` is the room's own folder, with the lab's id."""

    engine: Engine
    state: State

    @classmethod
    def of(cls, engine: Engine, state: State) -> Room:
        """Return a lab's room, whether or not it has ever been open."""
        folder = state.path("room", "id").parent
        write_file(folder / "id", state.lab_id)
        return cls(engine, State(folder, state.lab_id))

    @property
    def name(self) -> str:
        """What its network is called, and how the names of its containers and volumes begin."""
        return f"labapp-room-{self.state.lab_id}"

    @property
    def labels(self) -> dict[str, str]:
        """The labels of all its containers and volumes."""
        return {**self.state.labels, ROLE_LABEL: "room"}

    def hub(self) -> Container | None:
        """Return the hub's container, running or not."""
        return self.engine.container(f"{self.name}--hub")

    def settings(self) -> dict[str, Any]:
        """Return what the room was told last; LabError if it has never been open."""
        if found := self.state.read("room"):
            return found
        raise LabError(f"looking for the room: it has never been started. {_START}")

    def registry(self) -> PrivateRegistry:
        """Return the registry of the class.

        Its address is on the room's own network: engines in labs have a default bridge of their
        own, with the same addresses as this machine's.
        """
        return PrivateRegistry(engine=self.engine, state=self.state, kind=CLASS, network=self.name)

    def ask(self, path: str) -> Any:
        """Return what the hub's API answers; LabError if it doesn't."""
        told = self.settings()
        scheme = "https" if told["certificate"] else "http"
        host = "127.0.0.1" if told["bind"] == EVERYWHERE else told["bind"]
        url = f"{scheme}://{host}:{told['port']}/hub/api{path}"
        try:
            with requests.Session() as session, warnings.catch_warnings():
                session.trust_env = False
                headers = {"Authorization": f"token {told['token']}"}
                # A school's own certificate is for the name on the board, not for this address.
                warnings.simplefilter("ignore", InsecureRequestWarning)
                return session.get(url, headers=headers, timeout=20, verify=False).json()
        except (requests.RequestException, ValueError) as error:
            raise LabError(f"asking the hub at '{url}': {error}. {_START}") from error


def image_names(bench: Bench) -> dict[str, str]:
    """Return what the room's images are called; the tag tells of which files they are made."""
    tops = [REPOSITORY / name for name in ("labapp", "notebooks", "dockerfiles", "pyproject.toml")]
    made_of = {"lab": tops, "hub": tops, "engine": [FOLDER / "engine"]}
    base = "".join(base.digest for base in bench.bases)
    return {
        kind: f"{bench.registry.address}/room/{kind}:{_digest(places, base)[:12]}"
        for kind, places in made_of.items()
    }


def pushed(bench: Bench) -> list[str]:
    """Put the room's images into the lab's registry, for a bundle; return what they are called."""
    names = [*images(bench).values()]
    for name in names:
        push(bench.engine, bench.server, name)
    return names


def _digest(places: Sequence[Path], first: str) -> str:
    """Return what tells one state of some folders' files from another."""
    apart = {"work", "wheels", "__pycache__", ".ipynb_checkpoints", "bundle.zip", "receipts.json"}
    hasher = hashlib.sha256(first.encode())
    for file in sorted(each for place in places for each in (place, *place.rglob("*"))):
        name = file.relative_to(REPOSITORY)
        if file.is_file() and not apart.intersection(name.parts):
            hasher.update(f"{name.as_posix()}\0".encode() + file.read_bytes())
    return hasher.hexdigest()


def images(bench: Bench) -> dict[str, str]:
    """Return the room's images by kind; those that are missing are pulled, or else built."""
    names, args = image_names(bench), {"PIP_NO_INDEX": "1"}
    args["BASE"] = str(bench.base(bases.SLIM))
    for kind, name in names.items():
        if bench.engine.image(name) is not None:
            continue
        with contextlib.suppress(NotInRegistry):
            bench.registry.image(name)
            pull(bench.engine, bench.server, name)  # a bundle has brought it
            continue
        if kind == "engine":
            _build_engine(bench, name, args["BASE"])
        else:
            wheels.fetch(FOLDER / "wheels", platform=bench.engine.platform)
            file = FOLDER / "Dockerfile"
            build(bench.engine, REPOSITORY, tag=name, dockerfile=file, args=args, target=kind)
    return names


def _build_engine(bench: Bench, name: str, base: str) -> None:
    place = FOLDER / "engine"
    held = {
        str(bases.at(bundles.Bundle.address, base.name)): [
            (bench.registry, bench.registry.image(base.reference))
        ]
        for base in bench.bases
    }
    bundles.write(place / "bundle.zip", held, {})
    try:
        build(bench.engine, place, tag=name, args={"BASE": base})
    finally:
        (place / "bundle.zip").unlink()


def start(
    bench: Bench, *, certificate: tuple[Path, Path] | None = None, **said: Any
) -> dict[str, Any]:
    """Open the room, and return its settings; one that is open gets what is said anew.

    ``said`` are some of :data:`SETTINGS`; ``certificate`` is a file of PEM, and its key's.
    LabError where the engine can't run other engines, or does not answer at a socket.
    """
    room = Room.of(bench.engine, bench.state)
    engine, api = bench.engine, bench.engine.client.api
    if engine.rootless or engine.store == "podman" or not engine.host.startswith("unix:"):
        raise LabError(
            f"starting the room: the engine at '{engine.host}' is not Docker on this machine, run "
            "by root, and so can't run the learners' engines. Set DOCKER_HOST to one that is."
        )
    told = {**SETTINGS, **room.state.read("room"), **said}
    names = images(bench)
    told["trust"] = told["trust"] or _trust(engine, names["engine"])
    told["class_password"] = told["class_password"] or secrets.token_urlsafe(6)
    told.setdefault("token", secrets.token_hex(24))
    told.setdefault("teacher_password", secrets.token_urlsafe(9))
    everything = {"*": ("pull", "push", "delete")}
    with room.state.lock("accounts"):  # the hub may be letting somebody in
        Accounts(room.state).add(told["teacher"], told["teacher_password"], rights=everything)
    if certificate:
        for name, file in zip(("certificate.pem", "certificate.key"), certificate, strict=True):
            write_file(room.state.folder / name, file.read_bytes())
        told["certificate"] = str(certificate[0])
    scheme = "https" if told["certificate"] else "http"
    with engine.doing("making the room's network"):
        if not api.networks(names=[room.name]):
            api.create_network(room.name, labels=room.labels)
    host = bridge_address(engine, room.name)
    told.setdefault("tokens", free_port(host=host))
    make_certificates(room.state.path("private", host), host)
    told |= {
        "realm": f"https://{host}:{told['tokens']}/token",
        "private": f"private/{host}",
    }
    address = told["url"] or f"{scheme}://{_own_address(told['bind'])}:{told['port']}/"
    told |= {"address": address, "images": names, "labels": room.labels, "name": room.name}
    room.state.write("room", told)
    with engine.doing("starting the room"):
        if (old := room.hub()) is not None:
            discard(old)
        path = engine.host.removeprefix("unix://")
        inside, mine = "/var/run/docker.sock", room.state.folder.stat()
        hub = api.create_container(
            names["hub"],
            name=f"{room.name}--hub",
            labels=room.labels,
            user=f"{mine.st_uid}:{mine.st_gid}",
            environment={"DOCKER_HOST": f"unix://{inside}", "HOME": "/srv/room"},
            ports=[8000, TOKENS],
            host_config=api.create_host_config(
                binds=[f"{room.state.folder}:/srv/room", f"{path}:{inside}"],
                group_add=[str(Path(path).stat().st_gid)],
                port_bindings={8000: (told["bind"], told["port"]), TOKENS: (host, told["tokens"])},
                network_mode=room.name,
                restart_policy={"Name": "unless-stopped"},
            ),
            networking_config={"EndpointsConfig": {room.name: {"Aliases": ["hub"]}}},
        )
        api.start(hub["Id"])
    _await(room)
    registry = _open_registry(bench, room, told)
    told |= {
        "registry": registry.address,
        "authority": registry.authority.read_text(encoding="ascii"),
    }
    room.state.write("room", told)
    return told


def _open_registry(bench: Bench, room: Room, told: Mapping[str, Any]) -> PrivateRegistry:
    """Start the registry of the class, to which the hub lets in, and copy the base images to it."""
    room.state.write("registry", bench.state.read("registry"))  # which image a registry runs
    if not wait_until(lambda: service.find(room.state), seconds=60):
        raise LabError(
            "opening the registry of the class: the hub's token service does not answer at "
            f"'{told['realm']}'. 'docker logs {room.name}--hub' tells why. {_START}"
        )
    registry = room.registry().start()
    mine = registry.registry(told["teacher"], told["teacher_password"])
    for base in bench.bases:
        held = bench.registry.image(base.reference)
        mine.copy(bench.registry, held, to=bases.at(registry.address, base.name))
    return registry


def _await(room: Room) -> None:
    """Wait until the hub answers, or tell the end of its log."""

    def found() -> str:
        hub = room.hub()
        if hub is None or hub.attrs["RestartCount"]:
            return "ended"
        with contextlib.suppress(LabError):
            room.ask("/")
            return "answers"
        return ""

    if wait_until(found, seconds=60, every=0.2) != "answers":
        log = ""
        if hub := room.hub():
            log = hub.logs(tail=12).decode("utf-8", "replace")
            discard(hub)
        raise LabError(f"starting the room: its hub does not answer. Its log ends:\n{log}")


def stop(room: Room) -> None:
    """Close the room: hub, labs and engines end; homes, engines' data and names stay."""
    RegistryServer(engine=room.engine, state=room.state, kind=CLASS).stop()
    mine: list[str] = [f"{name}={value}" for name, value in room.labels.items()]
    with room.engine.doing("stopping the room"):
        found = room.engine.client.containers.list(
            all=True, filters={"label": mine}, ignore_removed=True
        )
        # The hub first, so that it starts nothing; then engines, whose labs are their network.
        with ThreadPoolExecutor(8) as threads:
            for part in ("--hub", "--engine", ""):
                list(threads.map(_end, [c for c in found if str(c.name).endswith(part)]))


def _end(container: Container) -> None:
    """Stop and remove a container; one that is gone, or going, is fine."""
    try:
        container.stop(timeout=10)
        container.remove(force=True, v=True)
    except docker.errors.APIError as error:
        if error.status_code not in {404, 409}:
            raise


def add(room: Room, names: Path) -> str:
    """Give the learners of a list their accounts; return the list with passwords, as CSV."""
    hub = room.hub()
    if hub is None or hub.status != "running":
        raise LabError(f"adding the learners of '{names}': the room is not open. {_START}")
    copy = room.state.path("names.csv")
    write_file(copy, names.read_bytes())
    command = ["python3", "/opt/lab/dockerfiles/room/learners.py", "names.csv"]
    try:
        with room.engine.doing(f"adding the learners of '{names}'"):
            ran: Any = hub.exec_run(command, demux=True)
    finally:
        copy.unlink()
    told, wrong = ((text or b"").decode("utf-8", "replace") for text in ran.output)
    if ran.exit_code:
        raise LabError(f"adding the learners of '{names}': {wrong.strip()}")
    return told


def _trust(engine: Engine, image: str) -> str:
    """Return the right that an engine's container gets: all there is, where this machine has it."""
    container = engine.client.containers.create(image, ["true"], privileged=True)
    try:
        container.start()
    except docker.errors.APIError:
        return "capabilities"
    finally:
        discard(container)
    return "privileged"


def _own_address(bind: str) -> str:
    """Return an address by which others reach this machine; nothing is sent to find out."""
    if bind != EVERYWHERE:
        return bind
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
