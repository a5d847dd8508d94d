"""The handle for notebooks: a registry that controls who may push and who may pull."""

from __future__ import annotations

import shutil
from dataclasses import asdict, fields

import pandas as pd

from labapp import images
from labapp.engine import Engine
from labapp.errors import InvalidReference, RegistryError, RegistryUnreachable
from labapp.feedback import Feedback
from labapp.images import Pull, Push
from labapp.images.transfer import Login
from labapp.private import decisions, process, trust
from labapp.private.accounts import Accounts
from labapp.private.authority import Authority
from labapp.private.decisions import Decision
from labapp.private.server import PrivateServer
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.registry.credentials import Credentials, docker_credentials
from labapp.state import State

_DOCKER_CONFIG = "private/docker-config/config"


class PrivateRegistry:
    """A registry with accounts, TLS and tokens; its images and accounts outlast a stop.

    Attributes:
        accounts: who may do what.
        server: the container and the token service.
    """

    def __init__(self, *, engine: Engine, state: State, feedback: Feedback) -> None:
        """Look where it is; nothing is started.

        Raises:
            EngineError: the engine does not answer.
            StateError: its files can't be read or written.
        """
        self.accounts = Accounts(state)
        self.server = PrivateServer(engine=engine, state=state)
        self._engine = engine
        self._state = state
        self._feedback = feedback

    def __repr__(self) -> str:
        return f"PrivateRegistry({self.server.name!r})"

    @property
    def address(self) -> str:
        """Host and port, as in references; RegistryUnreachable if it has never been started."""
        return self.server.address

    @property
    def authority(self) -> Authority:
        """Who signed its certificate: ``authority.certificate`` is the file to trust."""
        return self.server.authority

    @property
    def verified_by_engine(self) -> bool:
        """Whether the engine verifies the certificate.

        Docker doesn't at 127.0.0.1, and an engine in a virtual machine has no other address here.
        """
        return self.server.verified_by_engine

    def start(self) -> PrivateRegistry:
        """Make it run and answer, whatever state it was left in; return it.

        Raises:
            RegistryError: the registry, or its token service, does not come up.
        """
        registry = self.server.start(feedback=self._feedback)
        self._feedback.say(f"Its certificate is signed by '{self.authority.certificate}'.")
        if not self.verified_by_engine:
            self._feedback.say(
                f"At {registry.address}, Docker takes any certificate: this engine runs in a "
                "virtual machine. The lab's own client verifies it all the same."
            )
        return self

    def stop(self) -> None:
        """Stop registry and token service; images, accounts and trust stay."""
        self.server.stop(feedback=self._feedback)

    def remove(self) -> None:
        """Remove all of it: images, accounts, login, authority, and the engine's trust in it.

        Raises:
            RegistryError: the engine's trust can't be taken back.
        """
        self.distrust()
        self.server.remove(volume=True)
        shutil.rmtree(self._state.folder / process.FOLDER, ignore_errors=True)

    def trust(self) -> None:
        """Make the engine trust the authority, for this registry alone.

        Raises:
            RegistryError: the engine's folder of authorities can't be written.
        """
        certificate = self.authority.certificate
        self._feedback.command(trust.add(self._engine, self._state, self.address, certificate))
        self._feedback.say(f"The engine now trusts the authority for {self.address}.")

    def distrust(self) -> None:
        """Take the engine's trust back.

        Raises:
            RegistryError: the engine's folder of authorities can't be written.
        """
        for file in trust.remove(self._engine, self._state):
            self._feedback.command(["sudo", "rm", file])

    def log_in(self, name: str, password: str) -> None:
        """Log an account in for :meth:`push` and :meth:`pull`; ask first whether it is right.

        The login goes into a docker configuration of the lab's own.

        Raises:
            RegistryError: there is no such account, or its password is another.
        """
        address = self.address
        self._feedback.command(
            [
                *self._login().command("login", "--username", name),
                "--password-stdin",
                address,
            ]
        )
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
        basic = Credentials(name, password).basic.removeprefix("Basic ")
        self._state.write(_DOCKER_CONFIG, {"auths": {address: {"auth": basic}}})
        self._feedback.say(f"'{name}' is logged in at {address}.")

    def log_out(self) -> None:
        """Forget the login."""
        self._feedback.command(self._login().command("logout", self.address))
        self._state.write(_DOCKER_CONFIG, {"auths": {}})

    @property
    def logged_in(self) -> str:
        """The account that is logged in; empty for nobody."""
        credentials = self._login().credentials
        return credentials.username if credentials else ""

    def registry(self, name: str = "", password: str = "", *, trusted: bool = True) -> Registry:
        """Return an HTTP client of an account.

        Args:
            name: the account; by default nobody.
            password: its password.
            trusted: whether the client trusts the lab's authority.
        """
        credentials = Credentials(name, password) if name else None
        return Registry(
            self.address,
            secure=True,
            credentials=lambda _: credentials,
            certificates=self.authority.certificate if trusted else None,
        )

    def push(self, reference: str) -> Push:
        """Send an image, as the account that is logged in: ``docker push``.

        Raises:
            InvalidReference: it is no reference, or to another registry.
            PushError: the engine does not trust the registry, or the registry the account.
            RegistryUnreachable: registry or token service do not run.
        """
        name = self._mine(reference, "pushing")
        return images.push(self._engine, None, name, login=self._login(), feedback=self._feedback)

    def pull(self, reference: str) -> Pull:
        """Fetch an image, as the account that is logged in: ``docker pull``.

        Raises:
            InvalidReference: it is no reference, or to another registry.
            PullError: the engine does not trust the registry, or the registry the account.
            RegistryUnreachable: registry or token service do not run.
        """
        name = self._mine(reference, "pulling")
        return images.pull(self._engine, None, name, login=self._login(), feedback=self._feedback)

    def decisions(self) -> pd.DataFrame:
        """Return what the token service was asked, and what it granted, oldest first.

        Returns:
            Columns ``time``, ``account``, ``repository``, ``asked``, ``granted``, ``status``,
            ``why``.
        """
        columns = ["time", *(one.name for one in fields(Decision) if one.name != "time")]
        rows = [asdict(decision) for decision in decisions.read(self._state)]
        table = pd.DataFrame(rows, columns=columns)
        table["time"] = pd.to_datetime(table["time"], utc=True, format="ISO8601")
        return table

    def let_tokens_last(self, seconds: float) -> None:
        """Set how long the next tokens are valid; the registry adds 60 s, as clocks differ."""
        settings = self._state.read(process.SETTINGS)
        self._state.write(process.SETTINGS, {**settings, "seconds": seconds})

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
            "its token service": process.find(self._state) is not None,
            "its container": self.server.is_running(),
        }
        if not all(running.values()):
            down = " and ".join(part for part, runs in running.items() if not runs)
            raise RegistryUnreachable(
                f"{verb} '{reference}': the private registry is down ({down} does not run). "
                "Its 'start()' starts it again."
            )
        return parsed
