"""Which authorities the engine trusts for a registry: its ``certs.d`` folder.

Source: Docker, "Verify repository client with certificates"; Podman reads the same folder,
containers-certs.d(5).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from labapp.engine import Engine
from labapp.errors import RegistryError
from labapp.registry.storage import STORAGE, RegistryStorage
from labapp.state import State
from labapp.system.privileges import run_as_root

SYSTEM = "/etc/docker/certs.d"

_RECORD = "private/trusted"

_ADD = 'mkdir -p "$1" && printf %s "$2" > "$1/ca.crt"'
_REMOVE = 'rm -f "$1/ca.crt" && { rmdir "$1" 2>/dev/null || true; }'


def folder(engine: Engine) -> str:
    """Return the engine's folder of trusted authorities, on the machine that it runs on."""
    with engine.doing("asking the engine about itself"):
        options = engine.client.info().get("SecurityOptions") or ()
    if not any("rootless" in str(option) for option in options):
        return SYSTEM
    program = "containers" if engine.name == "Podman" else "docker"
    return str(Path.home() / ".config" / program / "certs.d")


def add(engine: Engine, state: State, address: str, certificate: Path) -> list[str]:
    """Make the engine trust an authority for one registry; other registries are as before.

    A short-lived container writes the file: the folder is the engine's own, wherever it runs, and
    most often not the learner's to write to.

    Args:
        engine: which is to trust it.
        state: where it is kept in mind, so that :func:`remove` finds it.
        address: the registry.
        certificate: the authority's certificate, in PEM.

    Returns:
        The command line that does the same.

    Raises:
        RegistryError: the folder can't be written.
    """
    place = folder(engine)
    state.write(_RECORD, {**state.read(_RECORD), address: place})
    text = certificate.read_text(encoding="ascii")
    _run(engine, state, place, [_ADD, address, text], doing=f"trusting the registry '{address}'")
    argv = ["install", "-D", "-m", "644", str(certificate), f"{place}/{address}/ca.crt"]
    return ["sudo", *argv] if place == SYSTEM else argv


def remove(engine: Engine | None, state: State) -> list[str]:
    """Take back what :func:`add` did for this lab; return the files that are gone.

    Args:
        engine: which has trusted it; None where it is this machine's, and runs no more.
        state: where it was kept in mind.

    Raises:
        RegistryError: a file can't be removed.
    """
    removed = []
    for address, place in state.read(_RECORD).items():
        doing = f"trusting the registry '{address}' no more"
        if engine is not None:
            _run(engine, state, str(place), [_REMOVE, address], doing=doing)
        elif (ran := run_as_root(["rm", "-rf", f"{place}/{address}"])).returncode:
            raise RegistryError(f"{doing}: {ran.stderr.strip()}. Remove '{place}/{address}'.")
        removed.append(f"{place}/{address}/ca.crt")
    state.write(_RECORD, {})
    return removed


def trusted(state: State) -> list[str]:
    """Return the files that :func:`remove` would take away."""
    return [f"{place}/{address}/ca.crt" for address, place in state.read(_RECORD).items()]


def _run(engine: Engine, state: State, place: str, script: Sequence[str], *, doing: str) -> None:
    image = str(state.read("registry").get("image"))
    work = RegistryStorage(engine, state, volume=place, image=image)
    command, *arguments = script
    try:
        work.run(["sh", "-c", f"cd {shlex.quote(STORAGE)} && {command}", "sh", *arguments])
    except RegistryError as error:
        raise RegistryError(
            f"{doing}: the engine's folder '{place}' can't be written ({error})."
        ) from error
