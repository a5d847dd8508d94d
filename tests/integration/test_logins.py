"""Logging in for real, at a Distribution registry with passwords."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from registries import put_image

from labapp.errors import RegistryError
from labapp.machine.engine import Engine, tar_of
from labapp.machine.ports import free_port
from labapp.machine.waiting import wait_until
from labapp.registry.client import Registry
from labapp.registry.login import Credentials
from labapp.registry.server import CONFIG, PORT_INSIDE, RegistryServer
from labapp.state import ROLE_LABEL

LEARNER = Credentials("learner", "correct horse")
HTPASSWD = b"learner:$2b$04$ocSrMHbLMEH/mel/cf4Z4OrMqR9P1DD9ns.x5HmdthN24vEuLylkW"
"""The learner's password under bcrypt, as ``htpasswd -B`` writes it."""
AUTH = b"\nauth:\n  htpasswd:\n    realm: a test\n    path: /htpasswd\n"


@pytest.fixture(scope="module")
def guarded(engine: Engine, server: RegistryServer) -> Iterator[str]:
    """The address of a registry of the lab's image, with a lock on its door."""
    port = free_port()
    container = engine.client.containers.create(
        server.image,
        command=["serve", "/registry.yml"],
        name=f"labapp-logins-{uuid.uuid4().hex[:8]}",
        labels={**engine.labels, ROLE_LABEL: "oneshot"},
        ports={PORT_INSIDE: ("127.0.0.1", port)},
    )
    try:
        files = {"registry.yml": CONFIG.read_bytes() + AUTH, "htpasswd": HTPASSWD}
        container.put_archive("/", tar_of(files))
        container.start()
        assert wait_until(lambda: b"listening on" in container.logs(), seconds=20)
        yield f"localhost:{port}"
    finally:
        container.remove(force=True, v=True)


def test_name_and_password_open_it(guarded: str) -> None:
    registry = Registry(guarded, credentials=lambda _: LEARNER)
    digest = put_image(registry, "shop/private")
    assert registry.image(f"{guarded}/shop/private:1").digest == digest
    assert registry.repositories() == ["shop/private"]


def test_docker_login_is_enough(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    pair = base64.b64encode(b"learner:correct horse").decode()
    config = {"auths": {guarded: {"auth": pair}}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    Registry(guarded).ping()


@pytest.mark.parametrize(
    ("credentials", "fact"),
    [
        (None, "docker login localhost:"),
        (Credentials("learner", "wrong"), "'learner'"),
        (Credentials("stranger", "correct horse"), "'stranger'"),
    ],
)
def test_who_has_no_login_is_told(guarded: str, credentials: Credentials | None, fact: str) -> None:
    with pytest.raises(RegistryError, match=fact):
        Registry(guarded, credentials=lambda _: credentials).tags("shop/private")
