"""The private registry's container: CNCF Distribution with TLS, opened by the service's tokens.

Source: CNCF Distribution, "Configuring a registry", ``http.tls`` and ``auth.token``.
"""

from __future__ import annotations

import json

import psutil
from ruamel.yaml import YAML

from labapp.engine import Engine
from labapp.feedback import Feedback
from labapp.private import process
from labapp.private.authority import Authority
from labapp.private.process import FOLDER
from labapp.private.tokens import ISSUER, SERVICE
from labapp.registry import Registry
from labapp.registry.server import CONFIG, CONFIG_INSIDE, RegistryServer
from labapp.state import State
from labapp.system.ports import LOOPBACK

_INSIDE = "/etc/labapp"


class PrivateServer(RegistryServer):
    """The private registry of one lab: its container, its volume, and its token service."""

    _kind = "private"
    _never_started = (
        "finding the private registry: it has never been started. Its 'start()' starts it, once "
        "'python3 -m labapp start' has started the lab."
    )

    def __init__(self, *, engine: Engine, state: State) -> None:
        super().__init__(engine=engine, state=state)
        self._host = bridge_address(engine)
        self._realm = ""

    @property
    def authority(self) -> Authority:
        """Who signs the registry's certificate; made when it is first asked for."""
        return Authority.open(self._state.folder / FOLDER)

    @property
    def verified_by_engine(self) -> bool:
        """Whether the engine verifies the certificate; Docker doesn't for a loopback address."""
        return self._host != LOOPBACK or self._engine.name == "Podman"

    def start(self, *, image: str | None = None, feedback: Feedback) -> Registry:
        """Make token service and registry run and answer; see :meth:`RegistryServer.start`.

        Raises:
            RegistryError: one of them does not start.
        """
        hosts = list(dict.fromkeys([self._host, LOOPBACK, "localhost"]))
        with self._state.lock("private-service"):
            authority = self.authority
            authority.issue(hosts, name="server")
            # A key pair of its own: no other certificate of the authority can sign tokens.
            authority.issue(["tokens.labapp.invalid"], name="tokens")
            # Docker's containerd image store trusts the authority for the registry alone, not
            # for its token service (moby issue 52361); so there it is asked without TLS, over
            # the loopback interface, which no other machine can listen to.
            tls = self._engine.store != "containerd"
            host = self._host if tls else LOOPBACK
            if not tls:
                feedback.say("With this engine's image store, tokens are asked for without TLS.")
            self._realm = process.start(self._state, host=host, tls=tls).realm
        return super().start(image=image, feedback=feedback)

    def stop(self, *, feedback: Feedback) -> None:
        """Stop registry and token service; accounts, rights and images stay."""
        super().stop(feedback=feedback)
        process.stop(self._state)

    def remove(self, *, volume: bool) -> None:
        """Remove the container and end the token service; with ``volume``, the images too."""
        super().remove(volume=volume)
        process.stop(self._state)

    def _at(self, port: int) -> str:
        return f"{self._host}:{port}"

    def _client(self, address: str) -> Registry:
        return Registry(
            address,
            secure=True,
            credentials=lambda _: None,
            certificates=self.authority.certificate,
        )

    def _files(self) -> dict[str, bytes]:
        config = YAML(typ="safe").load(CONFIG.read_text(encoding="utf-8"))
        config["http"]["tls"] = {
            "certificate": f"{_INSIDE}/server.pem",
            "key": f"{_INSIDE}/server.key",
            "minimumtls": "tls1.2",
        }
        config["auth"] = {
            "token": {
                "realm": self._realm,
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": f"{_INSIDE}/tokens.pem",
            }
        }
        names = ("server.pem", "server.key", "tokens.pem")
        folder = self.authority.folder
        files = {f"{_INSIDE}/{name}": (folder / name).read_bytes() for name in names}
        return {CONFIG_INSIDE: json.dumps(config, indent=1).encode(), **files}  # JSON is YAML


def bridge_address(engine: Engine) -> str:
    """Return this machine's address on the engine's default bridge, or 127.0.0.1.

    Docker trusts every registry at a loopback address, whatever certificate it shows; this address
    is not one, and leads to this machine all the same. An engine in a virtual machine has its
    bridge there.

    Raises:
        EngineError: the engine does not tell.
    """
    with engine.doing("looking for the engine's default bridge"):
        networks = engine.client.api.networks(names=["bridge"])
    here = {one.address for found in psutil.net_if_addrs().values() for one in found}
    for network in networks:
        for subnet in (network.get("IPAM") or {}).get("Config") or ():
            if subnet.get("Gateway") in here and ":" not in subnet["Gateway"]:
                return str(subnet["Gateway"])
    return LOOPBACK
