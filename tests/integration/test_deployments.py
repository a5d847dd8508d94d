"""Deployments on the real engine; what a server runs when a tag moves, chapter 03 shows."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labapp.errors import DeploymentError, RunError
from labapp.feedback import QuietFeedback
from labapp.journey.deploy import deploy
from labapp.journey.run import remove_running
from labapp.journey.transfer import push, remove
from labapp.machine.engine import Engine
from labapp.machine.ports import free_port
from labapp.registry.server import RegistryServer
from labapp.state import ROLE_LABEL, State


@pytest.fixture
def image(
    engine: Engine, server: RegistryServer, build_site: Callable[[str, str], str]
) -> Iterator[str]:
    """A web server that prints its environment and answers 'one', pushed."""
    name = f"{server.address}/test/{uuid.uuid4().hex[:8]}:1"
    push(engine, server, build_site(name, "one"))
    remove_running(engine)  # what an exercise has left
    yield name
    remove_running(engine)
    remove(engine, name)


@pytest.fixture
def file(tmp_path: Path, image: str) -> Path:
    path = tmp_path / "deployment.yaml"
    path.write_text(f"services:\n  web:\n    image: {image}\n    ports: ['8000']\n")
    return path


def _services(engine: Engine) -> list[str]:
    return [str(container.name) for container in engine.containers({ROLE_LABEL: "service"})]


def test_services_and_their_environment(
    engine: Engine, server: RegistryServer, image: str, file: Path
) -> None:
    port = free_port()
    file.write_text(f"""\
services:
  web: {{image: "{image}", ports: ["0.0.0.0:{port}:8000", "9000"]}}
  quiet: {{image: "{image}", environment: [A=b c, COST=$$5]}}
""")
    running = deploy(engine, server, file)
    urls = {name: each.url for name, each in running.running.items()}
    assert urls == {"web": f"http://127.0.0.1:{port}", "quiet": None}
    web = engine.client.containers.get(running.running["web"].name)
    assert {b["HostIp"] for bs in web.ports.values() for b in bs or ()} == {"127.0.0.1"}
    assert {"A=b c", "COST=$5"} <= set(running.running["quiet"].logs().splitlines())
    with pytest.raises(DeploymentError, match=r"nope.*web.*quiet"):
        running.get("nope")

    # A service that the file does not name any more goes.
    file.write_text(f"services:\n  web:\n    image: {image}\n")
    deploy(engine, server, file)
    assert len(_services(engine)) == 1


def test_what_goes_wrong(
    engine: Engine, server: RegistryServer, image: str, file: Path, told: QuietFeedback
) -> None:
    good = file.read_text()

    def fails(text: str, fact: str) -> None:
        file.write_text(text)
        with pytest.raises((DeploymentError, RunError), match=fact):
            deploy(engine, server, file)

    running = deploy(engine, server, file)
    shown = f"docker run -d --name {running.running['web'].name} -p 127.0.0.1::8000 {image}"
    assert told.commands[-2:] == [f"docker pull {image}", shown]
    fails(good.replace(image, f"{image}x"), r"line 3, service 'web': .*'1x'")
    fails(good.replace(image, f"http://{image}"), r"line 3.*'http://")
    assert running.get("web") == "one", "the same container, at the same port"
    port = server.address.rpartition(":")[2]
    fails(good.replace("'8000'", f"'{port}:8000'"), port)
    fails(good + "    environment: {FAIL: 4}\n", r"(?s)status 4.*FAIL=4")
    file.write_text(good)
    assert deploy(engine, server, file).get("web") == "one"


def test_two_labs_never_touch_each_other(
    engine: Engine, server: RegistryServer, file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    others = replace(engine, labels=State.open(tmp_path_factory.mktemp("other")).labels)
    mine = deploy(engine, server, file)
    theirs = deploy(others, server, file)
    assert mine.get("web") == theirs.get("web") == "one"
    assert _services(others) == [theirs.running["web"].name]
    assert remove_running(others) == [theirs.running["web"].name]
    assert mine.get("web") == "one"
