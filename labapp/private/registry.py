"""The handle for notebooks: a registry that controls who may push and who may pull.

Sources: CNCF Distribution, "Configuring a registry", ``http.tls`` and ``auth.token``; Docker,
"Verify repository client with certificates"; Podman reads the same folder,
containers-certs.d(5).
"""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from ruamel.yaml import YAML

from labapp import feedback
from labapp.errors import InvalidReference, RegistryError, RegistryUnreachable
from labapp.journey import transfer
from labapp.journey.transfer import Login, Pull, Push
from labapp.machine.engine import Engine
from labapp.machine.ports import LOOPBACK
from labapp.machine.root import run_as_root
from labapp.private import service
from labapp.private.accounts import Accounts
from labapp.private.authority import Authority
from labapp.private.service import Decision
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.login import Credentials, docker_credentials
from labapp.registry.server import CONFIG, CONFIG_INSIDE, STORAGE, RegistryServer, run_over
from labapp.state import State

if TYPE_CHECKING:
    import pandas as pd

SYSTEM = "/etc/docker/certs.d"
"""The engine's folder of authorities, by registry; an engine without root has one of its own."""

_INSIDE = "/etc/labapp"
_FOLDER = "private"
_DOCKER_CONFIG = "private/docker-config/config"
_TRUSTED = "private/trusted"
_ADD = 'mkdir -p "$1" && printf %s "$2" > "$1/ca.crt"'
_REMOVE = 'rm -f "$1/ca.crt" && { rmdir "$1" 2>/dev/null || true; }'


class PrivateRegistry:
    """A registry with accounts, TLS and tokens; its images and accounts outlast a stop.

    Attributes:
        accounts: who may do what.
        host: the address of this machine that it listens on.
        server: its container.
    """

    def __init__(self, *, engine: Engine, state: State) -> None:
        """Look where it is; nothing is started.

        Raises:
            EngineError: the engine does not answer.
        """
        self.accounts = Accounts(state)
        self.host = bridge_address(engine)
        self.server = RegistryServer(
            engine=engine,
            state=state,
            kind="private",
            host=self.host,
            client=self._client,
            advice="Its 'start()' starts it, once 'python3 -m labapp start' has started the lab.",
        )
        self._engine = engine
        self._state = state

    def __repr__(self) -> str:
        return f"PrivateRegistry({self.server.name!r})"

    @property
    def address(self) -> str:
        """Host and port, as in references; RegistryUnreachable if it has never been started."""
        return self.server.address

    @property
    def authority(self) -> Authority:
        """Who signed its certificate: ``authority.certificate`` is the file to trust."""
        return Authority.open(self._state.folder / _FOLDER)

    @property
    def verified_by_engine(self) -> bool:
        """Whether the engine verifies the certificate.

        Docker doesn't at 127.0.0.1, and an engine in a virtual machine has no other address here.
        """
        return self.host != LOOPBACK or self._engine.name == "Podman"

    def start(self) -> PrivateRegistry:
        """Make it run and answer, whatever state it was left in; return it.

        Raises:
            RegistryError: the registry, or its token service, does not come up.
        """
        with self._state.lock("private-service"):
            certificate = self.authority.issue([self.host, LOOPBACK, "localhost"], name="server")
            # A key pair of its own: no other certificate of the authority can sign tokens.
            signer = self.authority.issue(["tokens.labapp.invalid"], name="tokens")
            # Docker's containerd image store trusts the authority for the registry alone, not
            # for its token service (moby issue 52361); so there it is asked without TLS, over
            # the loopback interface, which no other machine can listen to.
            tls = self._engine.store != "containerd"
            if not tls:
                feedback.say("With this engine's image store, tokens are asked for without TLS.")
            realm = service.start(
                self._state,
                host=self.host if tls else LOOPBACK,
                signer=signer,
                server=certificate if tls else None,
            )
        files = {
            CONFIG_INSIDE: _config(realm),
            f"{_INSIDE}/server.pem": certificate.certificate.read_bytes(),
            f"{_INSIDE}/server.key": certificate.key.read_bytes(),
            f"{_INSIDE}/tokens.pem": signer.certificate.read_bytes(),
        }
        image = RegistryServer(engine=self._engine, state=self._state).image
        registry = self.server.start(image=image, files=files)
        feedback.say(f"Its certificate is signed by '{self.authority.certificate}'.")
        if not self.verified_by_engine:
            feedback.say(
                f"At {registry.address}, Docker takes any certificate: this engine runs in a "
                "virtual machine. The lab's own client verifies it all the same."
            )
        return self

    def stop(self) -> None:
        """Stop registry and token service; images, accounts and trust stay."""
        self.server.stop()
        service.stop(self._state)

    def remove(self) -> None:
        """Remove all of it: images, accounts, login, authority, and the engine's trust in it.

        Raises:
            RegistryError: the engine's trust can't be taken back.
        """
        self.distrust()
        self.server.remove(volume=True)
        service.stop(self._state)
        shutil.rmtree(self._state.folder / _FOLDER, ignore_errors=True)

    def trust(self) -> None:
        """Make the engine trust the authority, for this registry alone.

        Raises:
            RegistryError: the engine's folder of authorities can't be written.
        """
        feedback.command(trust(self._engine, self._state, self.address, self.authority.certificate))
        feedback.say(f"The engine now trusts the authority for {self.address}.")

    def distrust(self) -> None:
        """Take the engine's trust back.

        Raises:
            RegistryError: the engine's folder of authorities can't be written.
        """
        for file in distrust(self._engine, self._state):
            feedback.command(["sudo", "rm", file])

    def log_in(self, name: str, password: str) -> None:
        """Log an account in for :meth:`push` and :meth:`pull`; ask first whether it is right.

        The login goes into a docker configuration of the lab's own.

        Raises:
            RegistryError: there is no such account, or its password is another.
        """
        address = self.address
        login = self._login().command("login", "--username", name)
        feedback.command([*login, "--password-stdin", address])
        try:
            self.registry(name, password).ping()
        except RegistryError as error:
            if self.accounts.verify(name, password):
                raise
            raise RegistryError(
                f"logging in as '{name}' at '{address}': there is no such account, or its "
                "password is another. "
                + (self.accounts.damaged() or "Check both, or add the account.")
            ) from error
        basic = base64.b64encode(f"{name}:{password}".encode()).decode("ascii")
        self._state.write(_DOCKER_CONFIG, {"auths": {address: {"auth": basic}}})
        feedback.say(f"'{name}' is logged in at {address}.")

    def log_out(self) -> None:
        """Forget the login."""
        feedback.command(self._login().command("logout", self.address))
        self._state.write(_DOCKER_CONFIG, {"auths": {}})

    def registry(self, name: str = "", password: str = "", *, trusted: bool = True) -> Registry:
        """Return an HTTP client of an account.

        Args:
            name: the account; by default nobody.
            password: its password.
            trusted: whether the client trusts the lab's authority.
        """
        credentials = Credentials(name, password) if name else None
        return self._client(self.address, credentials, trusted=trusted)

    def _client(
        self, address: str, credentials: Credentials | None = None, *, trusted: bool = True
    ) -> Registry:
        certificates = self.authority.certificate if trusted else None
        return Registry(
            address, secure=True, credentials=lambda _: credentials, certificates=certificates
        )

    def push(self, reference: str) -> Push:
        """Send an image, as the account that is logged in: ``docker push``.

        Raises:
            InvalidReference: it is no reference, or to another registry.
            PushError: the engine does not trust the registry, or the registry the account.
            RegistryUnreachable: registry or token service do not run.
        """
        name = self._mine(reference, "pushing")
        return transfer.push(self._engine, None, name, login=self._login())

    def pull(self, reference: str) -> Pull:
        """Fetch an image, as the account that is logged in: ``docker pull``.

        Raises:
            InvalidReference: it is no reference, or to another registry.
            PullError: the engine does not trust the registry, or the registry the account.
            RegistryUnreachable: registry or token service do not run.
        """
        name = self._mine(reference, "pulling")
        return transfer.pull(self._engine, None, name, login=self._login())

    def decisions(self) -> pd.DataFrame:
        """Return what the token service was asked, and what it granted, oldest first.

        Returns:
            Columns ``time``, ``account``, ``repository``, ``asked``, ``granted``, ``status``,
            ``why``.
        """
        import pandas as pd

        columns = ["time", *(one.name for one in fields(Decision) if one.name != "time")]
        rows = [asdict(decision) for decision in service.decisions(self._state)]
        table = pd.DataFrame(rows, columns=columns)
        table["time"] = pd.to_datetime(table["time"], utc=True, format="ISO8601")
        return table

    def _login(self) -> Login:
        file = self._state.path(f"{_DOCKER_CONFIG}.json")
        known = docker_credentials(self.address, file=file)
        registry = self.registry(known.username, known.password) if known else self.registry()
        return Login(registry, file.parent, known)

    def _mine(self, reference: str, verb: str) -> Reference:
        """Return a reference that the login may be used for, while there is somebody to use it."""
        parsed = Reference.parse(reference)
        if parsed.registry != self.address:
            raise InvalidReference(
                f"{verb} '{reference}' as an account of the private registry: it is in "
                f"'{parsed.registry}'. Write it as '{self.address}/{parsed.repository}…'."
            )
        # The engine would try for long, and then tell little.
        running = {
            "its token service": service.find(self._state) is not None,
            "its container": self.server.is_running(),
        }
        if not all(running.values()):
            down = " and ".join(part for part, runs in running.items() if not runs)
            raise RegistryUnreachable(
                f"{verb} '{reference}': the private registry is down ({down} does not run). "
                "Its 'start()' starts it again."
            )
        return parsed


def _config(realm: str) -> bytes:
    """Return the lab's own registry's configuration with TLS, and with tokens from a realm."""
    config = YAML(typ="safe").load(CONFIG.read_text(encoding="utf-8"))
    config["http"]["tls"] = {
        "certificate": f"{_INSIDE}/server.pem",
        "key": f"{_INSIDE}/server.key",
        "minimumtls": "tls1.2",
    }
    config["auth"] = {
        "token": {
            "realm": realm,
            "service": service.SERVICE,
            "issuer": service.ISSUER,
            "rootcertbundle": f"{_INSIDE}/tokens.pem",
        }
    }
    return json.dumps(config, indent=1).encode()  # JSON is YAML


def bridge_address(engine: Engine) -> str:
    """Return this machine's address on the engine's default bridge, or 127.0.0.1.

    Docker trusts every registry at a loopback address, whatever certificate it shows; this address
    is not one, and leads to this machine all the same. An engine in a virtual machine has its
    bridge there.
    """
    with engine.doing("looking for the engine's default bridge"):
        networks = engine.client.api.networks(names=["bridge"])
    here = {one.address for found in psutil.net_if_addrs().values() for one in found}
    for network in networks:
        for subnet in (network.get("IPAM") or {}).get("Config") or ():
            if subnet.get("Gateway") in here and ":" not in subnet["Gateway"]:
                return str(subnet["Gateway"])
    return LOOPBACK


def trust(engine: Engine, state: State, address: str, certificate: Path) -> list[str]:
    """Make an engine trust an authority for one registry; return the command that does the same.

    Other registries are as before. What was trusted is kept in mind, for :func:`distrust`.
    """
    with engine.doing("asking the engine about itself"):
        options = engine.client.info().get("SecurityOptions") or ()
    place = SYSTEM
    if any("rootless" in str(option) for option in options):
        program = "containers" if engine.name == "Podman" else "docker"
        place = str(Path.home() / ".config" / program / "certs.d")
    state.write(_TRUSTED, {**state.read(_TRUSTED), address: place})
    text = certificate.read_text(encoding="ascii")
    doing = f"trusting the registry '{address}'"
    _as_the_engine(engine, state, place, [_ADD, address, text], doing=doing)
    argv = ["install", "-D", "-m", "644", str(certificate), f"{place}/{address}/ca.crt"]
    return ["sudo", *argv] if place == SYSTEM else argv


def distrust(engine: Engine | None, state: State) -> list[str]:
    """Take back what :func:`trust` did for this lab; return the files that are gone.

    Without an engine, it is this machine's that runs no more.
    """
    for address, place in state.read(_TRUSTED).items():
        doing = f"trusting the registry '{address}' no more"
        if engine is not None:
            _as_the_engine(engine, state, place, [_REMOVE, address], doing=doing)
        elif (ran := run_as_root(["rm", "-rf", f"{place}/{address}"])).returncode:
            raise RegistryError(f"{doing}: {ran.stderr.strip()}. Remove '{place}/{address}'.")
    removed = trusted(state)
    state.write(_TRUSTED, {})
    return removed


def trusted(state: State) -> list[str]:
    """Return the files by which the engine trusts registries of this lab."""
    return [f"{place}/{address}/ca.crt" for address, place in state.read(_TRUSTED).items()]


def _as_the_engine(
    engine: Engine, state: State, folder: str, script: list[str], *, doing: str
) -> None:
    """Run a script in a folder of the engine's own, wherever it runs; others can't write there."""
    command, *arguments = script
    image = RegistryServer(engine=engine, state=state).image
    argv = ["sh", "-c", f"cd {STORAGE} && {command}", "sh", *arguments]
    try:
        run_over(engine, folder, argv, image=image, labels=state.labels)
    except RegistryError as error:
        raise RegistryError(
            f"{doing}: the engine's folder '{folder}' can't be written ({error})."
        ) from error
