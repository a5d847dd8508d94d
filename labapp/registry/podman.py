"""What Podman alone needs: to be told that the lab's registry speaks plain HTTP.

Docker takes HTTP from every registry on this machine. Podman asks for HTTPS, unless a file of its
settings names the registry. Its service reads them when it starts: one that a socket starts ends
when nobody asks it for five seconds, and is new for the next question.

Source: containers-registries.conf(5), containers-registries.conf.d(5), podman-system-service(1).
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from labapp import feedback
from labapp.errors import LabError
from labapp.machine.engine import Engine
from labapp.machine.ports import free_port, wait_until
from labapp.registry.server import RegistryServer
from labapp.state import State

SYSTEM = PurePosixPath("/etc/containers")
FOLDER = "registries.conf.d"
RECORD = "podman"
"""What the state folder keeps: the file that was written, and the port of a mirror."""


def takes_http(engine: Engine, address: str) -> bool:
    """Tell whether the engine takes plain HTTP from a registry; only Podman has to be asked."""
    if engine.name != "Podman":
        return True
    known = _info(engine).get("registries") or {}
    # A person may have named the host alone.
    entries = (known.get(name) for name in (address, address.partition(":")[0]))
    return any(isinstance(each, dict) and each.get("Insecure") for each in entries)


def settings(engine: Engine) -> PurePosixPath:
    """Return the folder of Podman's settings on its machine; a user's own where it has no root."""
    own = PurePosixPath((_info(engine).get("store") or {}).get("configFile") or SYSTEM / "none")
    return own.parent if engine.rootless else SYSTEM


def _info(engine: Engine) -> dict[str, Any]:
    api = engine.client.api
    with engine.doing("asking Podman about itself"):
        answer = api.get(f"{api.base_url}/v4.0.0/libpod/info", timeout=api.timeout)
        answer.raise_for_status()
        told: dict[str, Any] = answer.json()
    return told


def allow_http(engine: Engine, state: State, server: RegistryServer) -> None:
    """Have Podman take plain HTTP from the lab's registry; where the lab can't, say what to do."""
    address = server.address
    if takes_http(engine, address):
        return

    def is_told() -> bool:
        taken = takes_http(engine, address)
        engine.client.close()  # a connection that is kept open keeps the service
        return taken

    file = _file(engine, state)
    state.write(RECORD, {"file": str(file), "mirror": mirror_port(state) or free_port()})
    feedback.say(f"Telling Podman in '{file}' that {address} speaks plain HTTP.")
    try:
        server.write_on_machine(str(file.parent), file.name, _text(state, address))
        # Not by its signal to reload: Podman 5 forgets thereby where its volumes are.
        if wait_until(is_told, seconds=20, every=7):
            return
    except LabError as error:
        feedback.say(str(error))
    feedback.say(advice(engine, state, address))


def advice(engine: Engine, state: State, address: str) -> str:
    """Return what a person has to do where the lab can't."""
    return (
        f"Podman does not take plain HTTP from '{address}', so it can't pull from there or push. "
        f"Write these lines into '{_file(engine, state)}' on the machine where Podman runs "
        "(on macOS and Windows after 'podman machine ssh'), and restart its service, such as by "
        f"'systemctl {'--user ' if engine.rootless else ''}restart podman':\n"
        f"{_text(state, address)}Then run 'python3 -m labapp start'."
    )


def mirror_port(state: State) -> int:
    """Return the port from which Podman takes plain HTTP as well, for a mirror; else 0, any."""
    return int(state.read(RECORD).get("mirror", 0))


def _text(state: State, address: str) -> str:
    places = [address] + ([f"localhost:{port}"] if (port := mirror_port(state)) else [])
    return "".join(f'[[registry]]\nlocation = "{each}"\ninsecure = true\n' for each in places)


def written(state: State) -> str:
    """Return the file that the lab wrote for Podman, or an empty text."""
    return str(state.read(RECORD).get("file", ""))


def forget(engine: Engine | None, state: State) -> None:
    """Remove the file again; without an engine there is none to be told."""
    if engine is not None and (file := PurePosixPath(written(state))).name:
        RegistryServer(engine=engine, state=state).write_on_machine(str(file.parent), file.name, "")
        state.write(RECORD, {})


def _file(engine: Engine, state: State) -> PurePosixPath:
    return settings(engine) / FOLDER / f"labapp-{state.lab_id}.conf"
