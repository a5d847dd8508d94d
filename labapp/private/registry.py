"""The handle for notebooks: a registry that controls who may push and who may pull.

Sources: CNCF Distribution, "Configuring a registry", ``http.tls`` and ``auth.token``; Docker,
"Verify repository client with certificates"; containers-certs.d(5), the same for Podman.
"""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import trustme
from docker.auth import decode_auth
from ruamel.yaml import YAML

from labapp import feedback
from labapp.errors import InvalidReference, RegistryError, RegistryUnreachable
from labapp.journey import transfer
from labapp.journey.transfer import Login, Transfer
from labapp.machine.engine import Engine
from labapp.machine.ports import LOOPBACK, ask
from labapp.machine.root import run_as_root
from labapp.private import service
from labapp.private.accounts import Accounts
from labapp.private.service import Decision
from labapp.reference import Reference
from labapp.registry import podman
from labapp.registry.client import Registry
from labapp.registry.http import Credentials, is_local
from labapp.registry.manifests import Platform
from labapp.registry.server import CONFIG, CONFIG_INSIDE, RegistryServer
from labapp.state import State, write_file

if TYPE_CHECKING:
    import pandas as pd

SYSTEM = "/etc/docker/certs.d"
"""The engine's folder of authorities, by registry; an engine without root has one of its own."""

_AUTHORITY = "Image Build & Delivery lab authority"
_INSIDE = "/etc/labapp"
_DOCKER_CONFIG = "private/docker-config/config"
_TRUSTED = "private/trusted"


class PrivateRegistry:
    """A registry with accounts, TLS and tokens; its images and accounts outlast a stop."""

    def __init__(
        self, *, engine: Engine, state: State, kind: str = "private", network: str = "bridge"
    ) -> None:
        """Look where it is; nothing is started. EngineError if the engine does not answer.

        It listens at this machine's address on one of the engine's networks.
        """
        self.accounts = Accounts(state)
        self.host = bridge_address(engine, network)
        self.server = RegistryServer(
            engine=engine,
            state=state,
            kind=kind,
            host=self.host,
            client=self._client,
            advice="Its 'start()' starts it, once 'python3 -m labapp start' has started the lab.",
        )
        self._engine = engine
        self._state = state

    @property
    def address(self) -> str:
        """Host and port, as in references; RegistryUnreachable if it has never been started."""
        return self.server.address

    @property
    def _is_apart(self) -> bool:
        """Whether the engine is in a virtual machine, or in another network than this process."""
        return self.host == LOOPBACK and self._engine.name != "Podman"

    @property
    def authority(self) -> Path:
        """The file to trust: the certificate of the authority that signed the registry's own."""
        return self._state.folder / "private" / self.host / "authority.pem"

    def start(self) -> PrivateRegistry:
        """Make it run and answer, whatever state it was left in, or raise RegistryError."""
        folder = self.authority.parent
        with self._state.lock("private-service"):
            make_certificates(folder, self.host)
            realm = service.start(self._state, folder / "tokens.pem")
        files = {CONFIG_INSIDE: _config(realm)}
        for name in ("server.pem", "server.key", "tokens.pem"):
            files[f"{_INSIDE}/{name}"] = (folder / name).read_bytes()
        image = RegistryServer(engine=self._engine, state=self._state).image
        registry = self.server.start(image=image, files=files)
        feedback.say(f"Its certificate is signed by '{self.authority}'.")
        # Podman verifies it there too; an engine in a virtual machine has no other address here.
        if self._is_apart:
            feedback.say(
                f"At {registry.address}, Docker takes any certificate: this engine's network is "
                "not this one, as in a virtual machine. The lab's own client verifies it all the "
                "same, and asks for the engine's tokens: a 'docker push' by hand can't, and fails."
            )
        return self

    def stop(self) -> None:
        """Stop registry and token service; images, accounts and trust stay."""
        self.server.stop()
        service.stop(self._state)

    def trust(self) -> None:
        """Make the engine trust the authority, for this registry alone, or raise RegistryError."""
        place = SYSTEM
        if self._engine.rootless and self._engine.name == "Podman":
            place = str(podman.settings(self._engine) / "certs.d")
        elif self._engine.rootless:
            home = os.environ.get("XDG_CONFIG_HOME") or (Path.home() / ".config").as_posix()
            place = f"{home}/docker/certs.d"
        file = f"{place}/{self.address}/ca.crt"
        argv = ["install", "-D", "-m", "644", str(self.authority), file]
        feedback.command(["sudo", *argv] if place == SYSTEM else argv)
        self._state.write(_TRUSTED, {**self._state.read(_TRUSTED), self.address: place})
        text = self.authority.read_text(encoding="ascii")
        registry = RegistryServer(engine=self._engine, state=self._state)
        registry.write_on_machine(place, f"{self.address}/ca.crt", text)
        feedback.say(f"The engine now trusts the authority for {self.address}.")

    def distrust(self) -> None:
        """Take the engine's trust back, or raise RegistryError."""
        distrust(self._engine, self._state)

    def log_in(self, name: str, password: str) -> None:
        """Log an account in for :meth:`push` and :meth:`pull`, if its password is right.

        The login goes into a docker configuration of the lab's own.

        Raises:
            RegistryError: there is no such account, or its password is another.
        """
        login = self._login().command("login", "--username", name)
        # Without something to read it would wait for ever in a cell, which can't be typed into.
        feedback.command([*login, "--password-stdin", self.address], reads='echo "$PASSWORD" | ')
        if not self.accounts.verify(name, password):
            raise RegistryError(
                f"logging in as '{name}' at '{self.address}': no such account has that password."
            )
        self.registry(name, password).ping()
        basic = Credentials(name, password).basic.removeprefix("Basic ")
        self._state.write(_DOCKER_CONFIG, {"auths": {self.address: {"auth": basic}}})
        feedback.say(f"'{name}' is logged in at {self.address}.")

    def registry(self, name: str = "", password: str = "") -> Registry:
        """Return an HTTP client of an account; by default of nobody."""
        return self._client(self.address, Credentials(name, password) if name else None)

    def _client(self, address: str, credentials: Credentials | None = None) -> Registry:
        return Registry(
            address,
            secure=True,
            credentials=lambda _: credentials,
            certificates=self.authority,
            platform=Platform.parse(self._engine.platform),
        )

    def push(self, reference: str) -> Transfer:
        """Send an image, as the account that is logged in: ``docker push``.

        Raises:
            InvalidReference: it is no reference, or to another registry.
            PushError: the engine does not trust the registry, or the registry the account.
            RegistryUnreachable: registry or token service do not run.
        """
        name = self._mine(reference, "pushing")
        return transfer.push(self._engine, self.server, name, login=self._login(name, "pull,push"))

    def pull(self, reference: str) -> Transfer:
        """Fetch an image, as the account that is logged in: ``docker pull``.

        It fails as :meth:`push` does, with PullError in place of PushError.
        """
        name = self._mine(reference, "pulling")
        return transfer.pull(self._engine, self.server, name, login=self._login(name, "pull"))

    def decisions(self) -> pd.DataFrame:
        """Return what the token service was asked, and what it granted, oldest first.

        The columns are those of :class:`labapp.private.service.Decision`.
        """
        import pandas as pd

        columns = [column.name for column in fields(Decision)]
        table = pd.DataFrame(service.decisions(self._state), columns=columns)
        table["time"] = pd.to_datetime(table["time"], utc=True, format="ISO8601")
        return table

    def _login(self, wanted: Reference | None = None, actions: str = "") -> Login:
        folder = (self._state.folder / _DOCKER_CONFIG).parent
        kept = self._state.read(_DOCKER_CONFIG).get("auths", {}).get(self.address)
        known = Credentials(*decode_auth(kept["auth"])) if kept else None
        token, realm = "", service.find(self._state) if wanted and self._is_apart else None
        if wanted and realm:
            headers = {"Authorization": known.basic} if known else {}
            scope = f"{realm}?scope=repository:{wanted.repository}:{actions}"
            token = ask(scope, seconds=10, headers=headers).json().get("token", "")
        return Login(self._client(self.address, known), folder, known, token)

    def _mine(self, reference: str, verb: str) -> Reference:
        """Return a reference that the login may be used for, while there is somebody to use it."""
        parsed = Reference.parse(reference)
        if parsed.registry != self.address:
            raise InvalidReference(
                f"{verb} '{reference}' as an account of the private registry: it is in "
                f"'{parsed.registry}'. Write it as '{self.address}/{parsed.repository}…'."
            )
        # The engine would try for long, and then tell little.
        if service.find(self._state) is None or not self.server.is_running():
            raise RegistryUnreachable(
                f"{verb} '{reference}': registry or token service don't run. 'start()' starts both."
            )
        return parsed


def make_certificates(folder: Path, host: str) -> None:
    """Make an authority, the registry's certificate, and one whose key signs tokens; once.

    The authority's own key is kept nowhere, so that it can never sign anything else.
    """
    if (folder / "authority.pem").exists():
        return
    authority = trustme.CA(organization_name=_AUTHORITY)
    # What signs tokens is a key pair of its own: no other certificate of the authority can.
    signed = {"server": {host, LOOPBACK, "localhost"}, "tokens": {"tokens.labapp.invalid"}}
    for name, hosts in signed.items():
        issued = authority.issue_cert(*hosts, organization_name=_AUTHORITY)
        write_file(folder / f"{name}.key", issued.private_key_pem.bytes())
        write_file(folder / f"{name}.pem", issued.cert_chain_pems[0].bytes())
    # The last one: where it is, the others are.
    write_file(folder / "authority.pem", authority.cert_pem.bytes())


def _config(realm: str) -> bytes:
    """Return the lab's own registry's configuration with TLS, and with tokens from a realm."""
    config = YAML(typ="safe").load(CONFIG.read_text(encoding="utf-8"))
    config["http"]["tls"] = {"certificate": f"{_INSIDE}/server.pem", "key": f"{_INSIDE}/server.key"}
    config["auth"] = {
        "token": {
            "realm": realm,
            "service": service.SERVICE,
            "issuer": service.ISSUER,
            "rootcertbundle": f"{_INSIDE}/tokens.pem",
        }
    }
    return json.dumps(config, indent=1).encode()  # JSON is YAML


def bridge_address(engine: Engine, name: str = "bridge") -> str:
    """Return this machine's address on a network of the engine's, the default bridge, or 127.0.0.1.

    Docker trusts every registry at a loopback address, whatever certificate it shows. An engine in
    a virtual machine has its bridge there.
    """
    with engine.doing(f"looking for the engine's network '{name}'"):
        networks = engine.client.api.networks(names=[name])
    for network in networks:
        if network["Name"] != name:  # the engine also tells of names that hold this one
            continue
        for subnet in (network.get("IPAM") or {}).get("Config") or ():
            gateway = subnet.get("Gateway") or ""
            if "." in gateway and is_local(f"//{gateway}"):
                return str(gateway)
    return LOOPBACK


def distrust(engine: Engine | None, state: State) -> None:
    """Take back all trust in registries of this lab; without an engine, on this machine."""
    for address, place in state.read(_TRUSTED).items():
        feedback.command(["sudo", "rm", f"{place}/{address}/ca.crt"])
        if engine is not None:
            registry = RegistryServer(engine=engine, state=state)
            registry.write_on_machine(place, f"{address}/ca.crt", "")
        elif (ran := run_as_root(["rm", "-rf", f"{place}/{address}"])).returncode:
            advice = f"Remove '{place}/{address}'"
            raise RegistryError(f"trusting '{address}' no more: {ran.stderr.strip()}. {advice}.")
    state.write(_TRUSTED, {})


def trusted(state: State) -> list[str]:
    """Return the files by which the engine trusts registries of this lab."""
    return [f"{place}/{address}/ca.crt" for address, place in state.read(_TRUSTED).items()]
