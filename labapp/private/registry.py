"""The handle for notebooks: a registry that controls who may push and who may pull.

Sources: CNCF Distribution, "Configuring a registry", ``http.tls`` and ``auth.token``; Docker,
"Verify repository client with certificates"; containers-certs.d(5), the same for Podman.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import trustme
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from ruamel.yaml import YAML

from labapp import feedback
from labapp.errors import InvalidReference, RegistryError, RegistryUnreachable
from labapp.journey import transfer
from labapp.journey.transfer import Login, Transfer
from labapp.machine.engine import Engine
from labapp.machine.ports import LOOPBACK
from labapp.machine.root import run_as_root
from labapp.private import service
from labapp.private.accounts import Accounts
from labapp.private.service import Decision, Issued
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.http import Credentials, docker_credentials
from labapp.registry.server import CONFIG, CONFIG_INSIDE, STORAGE, RegistryServer, run_over
from labapp.state import State, write_atomically

if TYPE_CHECKING:
    import pandas as pd

SYSTEM = "/etc/docker/certs.d"
"""The engine's folder of authorities, by registry; an engine without root has one of its own."""

_AUTHORITY = "Image Build & Delivery lab authority"
_INSIDE = "/etc/labapp"
_DOCKER_CONFIG = "private/docker-config/config"
_TRUSTED = "private/trusted"


@dataclass(frozen=True)
class Authority:
    """An authority that signs certificates for servers; others have to trust its own."""

    certificate: Path
    _ca: trustme.CA = field(repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Open the authority in a folder; it is made on first use, and anew if it is damaged."""
        key, certificate = folder / "authority.key", folder / "authority.pem"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            ca = trustme.CA.from_pem(certificate.read_bytes(), key.read_bytes())
        except (FileNotFoundError, ValueError):
            ca = trustme.CA(organization_name=_AUTHORITY)
            write_atomically(key, ca.private_key_pem.bytes())
            write_atomically(certificate, ca.cert_pem.bytes(), mode=0o644)
        return cls(certificate, ca)

    def issue(self, hosts: Iterable[str], *, name: str = "server", days: float = 30) -> Issued:
        """Sign a certificate for host names and addresses; one with half its time left is kept."""
        wanted, now = list(dict.fromkeys(hosts)), datetime.now(UTC)
        folder = self.certificate.parent
        issued = Issued(folder / f"{name}.pem", folder / f"{name}.key")
        if not self._is_good(issued, wanted, now + timedelta(days=days / 2)):
            end = now + timedelta(days=days)
            begin = min(end, now) - timedelta(hours=1)  # clocks differ
            leaf = self._ca.issue_cert(
                *wanted, organization_name=_AUTHORITY, not_before=begin, not_after=end
            )
            [certificate] = leaf.cert_chain_pems
            write_atomically(issued.key, leaf.private_key_pem.bytes())
            write_atomically(issued.certificate, certificate.bytes(), mode=0o644)
        return issued

    def _is_good(self, issued: Issued, hosts: list[str], until: datetime) -> bool:
        try:
            found = x509.load_pem_x509_certificate(issued.certificate.read_bytes())
            mine = x509.load_pem_x509_certificate(self._ca.cert_pem.bytes())
            found.verify_directly_issued_by(mine)
        except (FileNotFoundError, ValueError, InvalidSignature):
            return False
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        is_for = [str(name.value) for name in names]
        return is_for == hosts and datetime.now(UTC) < until <= found.not_valid_after_utc


class PrivateRegistry:
    """A registry with accounts, TLS and tokens; its images and accounts outlast a stop."""

    def __init__(self, *, engine: Engine, state: State) -> None:
        """Look where it is; nothing is started. EngineError if the engine does not answer."""
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

    @property
    def address(self) -> str:
        """Host and port, as in references; RegistryUnreachable if it has never been started."""
        return self.server.address

    @property
    def authority(self) -> Authority:
        """Who signed its certificate: ``authority.certificate`` is the file to trust."""
        return Authority.open(self._state.folder / "private")

    def start(self) -> PrivateRegistry:
        """Make it run and answer, whatever state it was left in, or raise RegistryError."""
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
        # Podman verifies it there too; an engine in a virtual machine has no other address here.
        if self.host == LOOPBACK and self._engine.name != "Podman":
            feedback.say(
                f"At {registry.address}, Docker takes any certificate: this engine runs in a "
                "virtual machine. The lab's own client verifies it all the same."
            )
        return self

    def stop(self) -> None:
        """Stop registry and token service; images, accounts and trust stay."""
        self.server.stop()
        service.stop(self._state)

    def trust(self) -> None:
        """Make the engine trust the authority, for this registry alone, or raise RegistryError."""
        trust(self._engine, self._state, self.address, self.authority.certificate)
        feedback.say(f"The engine now trusts the authority for {self.address}.")

    def distrust(self) -> None:
        """Take the engine's trust back, or raise RegistryError."""
        for file in trusted(self._state):
            feedback.command(["sudo", "rm", file])
        distrust(self._engine, self._state)

    def log_in(self, name: str, password: str) -> None:
        """Log an account in for :meth:`push` and :meth:`pull`, if its password is right.

        The login goes into a docker configuration of the lab's own.

        Raises:
            RegistryError: there is no such account, or its password is another.
        """
        login = self._login().command("login", "--username", name)
        feedback.command([*login, "--password-stdin", self.address])
        try:
            self.registry(name, password).ping()
        except RegistryError as error:
            if self.accounts.verify(name, password):
                raise
            raise RegistryError(
                f"logging in as '{name}' at '{self.address}': there is no such account, or its "
                "password is another. Check both, or add the account."
            ) from error
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
            certificates=self.authority.certificate,
        )

    def push(self, reference: str) -> Transfer:
        """Send an image, as the account that is logged in: ``docker push``.

        Raises:
            InvalidReference: it is no reference, or to another registry.
            PushError: the engine does not trust the registry, or the registry the account.
            RegistryUnreachable: registry or token service do not run.
        """
        name = self._mine(reference, "pushing")
        return transfer.push(self._engine, None, name, login=self._login())

    def pull(self, reference: str) -> Transfer:
        """Fetch an image, as the account that is logged in: ``docker pull``.

        It fails as :meth:`push` does, with PullError in place of PushError.
        """
        name = self._mine(reference, "pulling")
        return transfer.pull(self._engine, None, name, login=self._login())

    def decisions(self) -> pd.DataFrame:
        """Return what the token service was asked, and what it granted, oldest first.

        The columns are those of :class:`labapp.private.service.Decision`.
        """
        import pandas as pd

        columns = [column.name for column in fields(Decision)]
        table = pd.DataFrame(service.decisions(self._state), columns=columns)
        table["time"] = pd.to_datetime(table["time"], utc=True, format="ISO8601")
        return table

    def _login(self) -> Login:
        file = self._state.path(f"{_DOCKER_CONFIG}.json")
        known = docker_credentials(self.address, file=file)
        return Login(self._client(self.address, known), file.parent, known)

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
                f"{verb} '{reference}': the private registry, or its token service, does not run. "
                "Its 'start()' starts both again."
            )
        return parsed


def _config(realm: str) -> bytes:
    """Return the lab's own registry's configuration with TLS, and with tokens from a realm."""
    config = YAML(typ="safe").load(CONFIG.read_text(encoding="utf-8"))
    tls = {"certificate": f"{_INSIDE}/server.pem", "key": f"{_INSIDE}/server.key"}
    config["http"]["tls"] = tls
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

    Docker trusts every registry at a loopback address, whatever certificate it shows. An engine in
    a virtual machine has its bridge there.
    """
    with engine.doing("looking for the engine's default bridge"):
        networks = engine.client.api.networks(names=["bridge"])
    here = {one.address for found in psutil.net_if_addrs().values() for one in found}
    for network in networks:
        for subnet in (network.get("IPAM") or {}).get("Config") or ():
            if subnet.get("Gateway") in here and ":" not in subnet["Gateway"]:
                return str(subnet["Gateway"])
    return LOOPBACK


def trust(engine: Engine, state: State, address: str, certificate: Path) -> None:
    """Make an engine trust an authority for one registry, and say the command that does so."""
    with engine.doing("asking the engine about itself"):
        options = engine.client.info().get("SecurityOptions") or ()
    place = SYSTEM
    if any("rootless" in str(option) for option in options):
        program = "containers" if engine.name == "Podman" else "docker"
        place = str(Path.home() / ".config" / program / "certs.d")
    argv = ["install", "-D", "-m", "644", str(certificate), f"{place}/{address}/ca.crt"]
    feedback.command(["sudo", *argv] if place == SYSTEM else argv)
    state.write(_TRUSTED, {**state.read(_TRUSTED), address: place})
    script = 'mkdir -p "$1" && printf %s "$2" > "$1/ca.crt"'
    text = certificate.read_text(encoding="ascii")
    _as_the_engine(engine, state, place, script, address, text)


def distrust(engine: Engine | None, state: State) -> None:
    """Take back what :func:`trust` did for this lab; without an engine, on this machine."""
    for address, place in state.read(_TRUSTED).items():
        if engine is not None:
            _as_the_engine(engine, state, place, 'rm -rf "$1"', address)
        elif (ran := run_as_root(["rm", "-rf", f"{place}/{address}"])).returncode:
            raise RegistryError(
                f"trusting the registry '{address}' no more: {ran.stderr.strip()}. "
                f"Remove '{place}/{address}'."
            )
    state.write(_TRUSTED, {})


def trusted(state: State) -> list[str]:
    """Return the files by which the engine trusts registries of this lab."""
    return [f"{place}/{address}/ca.crt" for address, place in state.read(_TRUSTED).items()]


def _as_the_engine(engine: Engine, state: State, folder: str, script: str, *words: str) -> None:
    """Run a script in a folder of the engine's own, wherever it runs; others can't write there."""
    argv = ["sh", "-c", f"cd {STORAGE} && {script}", "sh", *words]
    image = RegistryServer(engine=engine, state=state).image
    run_over(engine, folder, argv, image=image, labels=state.labels)
