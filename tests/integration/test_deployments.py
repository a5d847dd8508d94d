"""Deployments on the real engine: what a server runs, through every move of a tag."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labapp import feedback
from labapp.errors import DeploymentError
from labapp.feedback import QuietFeedback
from labapp.journey.build import build
from labapp.journey.deploy import DIGEST_LABEL, deploy
from labapp.journey.pin import pin_deployment
from labapp.journey.run import remove_running
from labapp.journey.transfer import push
from labapp.machine.engine import Engine
from labapp.machine.ports import free_port
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.server import RegistryServer
from labapp.state import LABEL, ROLE_LABEL, State


@pytest.fixture(autouse=True)
def told() -> Iterator[QuietFeedback]:
    told = QuietFeedback()
    with feedback.using(told):
        yield told


@pytest.fixture
def image(engine: Engine, server: RegistryServer, slim: Reference, tmp_path: Path) -> Iterator[str]:
    """A web server that prints its environment and answers 'one', pushed."""
    name = f"{server.address}/test/{uuid.uuid4().hex[:8]}:1"
    _push(engine, server, slim, tmp_path, name, "one")
    yield name
    remove_running(engine)
    for image in engine.client.images.list(name=name.rpartition(":")[0]):
        engine.client.images.remove(image.id, force=True)


def _push(
    engine: Engine, server: RegistryServer, slim: Reference, folder: Path, name: str, text: str
) -> str:
    context = folder / "context"
    context.mkdir(exist_ok=True)
    (context / "index.html").write_text(text)
    (context / "Dockerfile").write_text(
        f"FROM {slim}\nWORKDIR /site\nCOPY index.html .\n"
        'CMD env; [ -z "$FAIL" ] || exit $FAIL; exec python3 -m http.server 8000\n'
    )
    build(engine, context, tag=name)
    return push(engine, server, name).digest


@pytest.fixture
def file(tmp_path: Path, image: str) -> Path:
    path = tmp_path / "deployment.yaml"
    path.write_text(f"services:\n  web:\n    image: {image}\n    ports: ['8000']\n")
    return path


def _services(engine: Engine, state: State) -> list[str]:
    labels = [f"{LABEL}={state.lab_id}", f"{ROLE_LABEL}=service"]
    found = engine.client.containers.list(all=True, filters={"label": labels}, ignore_removed=True)
    return sorted(str(container.name) for container in found)


def test_a_tag_moves_under_a_deployment_and_a_digest_does_not(
    engine: Engine,
    server: RegistryServer,
    registry: Registry,
    state: State,
    slim: Reference,
    image: str,
    file: Path,
    tmp_path: Path,
    told: QuietFeedback,
) -> None:
    one = registry.resolve(Reference.parse(image).repository, "1")
    running = deploy(engine, server, file)
    assert running.get("web") == "one"
    assert running.digest("web") == one
    name = running.running["web"].name
    container = engine.client.containers.get(name)
    assert container.attrs["Config"]["Image"] == image
    assert container.labels[ROLE_LABEL] == "service"
    assert container.labels[DIGEST_LABEL] == one
    assert [b["HostIp"] for b in container.ports["8000/tcp"]] == ["127.0.0.1"]
    assert f"docker pull {image}" in told.commands
    shown = f"docker run -d --name {name} -p 127.0.0.1::8000 {image}"
    assert told.commands[-1] == shown

    two = _push(engine, server, slim, tmp_path, image, "two")
    assert running.get("web") == "one"
    assert deploy(engine, server, file).digest("web") == two
    assert told.commands[-2:] == [f"docker rm --force {name}", shown]
    assert _services(engine, state) == [name]

    pin_deployment(file, registry)
    assert f"@{two}" in file.read_text()
    three = _push(engine, server, slim, tmp_path, image, "three")
    again = deploy(engine, server, file)
    assert again.get("web") == "two"
    assert again.digest("web") == two != three


def test_services_and_their_environment(
    engine: Engine,
    server: RegistryServer,
    state: State,
    image: str,
    file: Path,
    told: QuietFeedback,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TAKEN_OVER", "from here")
    monkeypatch.delenv("NOT_SET", raising=False)
    port = free_port()
    file.write_text(f"""\
services:
  web: {{image: "{image}", ports: ["0.0.0.0:{port}:8000", "9000"]}}
  quiet: {{image: "{image}", environment: [A=b c, COST=$$5, TAKEN_OVER, NOT_SET]}}
""")
    running = deploy(engine, server, file)
    urls = {name: each.url for name, each in running.running.items()}
    assert urls == {"web": f"http://127.0.0.1:{port}", "quiet": None}
    assert any("'0.0.0.0'" in line for line in told.lines)
    web = engine.client.containers.get(running.running["web"].name)
    assert {b["HostIp"] for bs in web.ports.values() for b in bs or ()} == {"127.0.0.1"}
    printed = running.running["quiet"].logs().splitlines()
    assert {"A=b c", "COST=$5", "TAKEN_OVER=from here"} <= set(printed)
    assert not any(line.startswith("NOT_SET") for line in printed)
    with pytest.raises(DeploymentError, match=r"nope.*web.*quiet"):
        running.get("nope")

    # A service that the file does not name any more goes.
    file.write_text(f"services:\n  web:\n    image: {image}\n")
    deploy(engine, server, file)
    assert len(_services(engine, state)) == 1


def test_when_the_registry_is_down_what_runs_goes_on(
    engine: Engine, server: RegistryServer, state: State, file: Path, told: QuietFeedback
) -> None:
    running = deploy(engine, server, file)
    before = engine.client.containers.get(running.running["web"].name).id
    registry_image = str(state.read("registry")["image"])
    server.stop()
    try:
        with pytest.raises(DeploymentError, match=server.address):
            deploy(engine, server, file)
        assert running.get("web") == "one"
        assert engine.client.containers.get(running.running["web"].name).id == before
    finally:
        server.start(image=registry_image)
    again = deploy(engine, server, file)
    assert engine.client.containers.get(again.running["web"].name).id != before


def test_what_goes_wrong(
    engine: Engine, server: RegistryServer, state: State, image: str, file: Path
) -> None:
    good = file.read_text()

    def fails(text: str, fact: str) -> None:
        file.write_text(text)
        with pytest.raises(DeploymentError, match=fact):
            deploy(engine, server, file)

    fails(good.replace(image, f"{image}x"), r"line 3, service 'web': .*'1x'")
    fails(good.replace("ports", "port"), r"line 4: 'port'")
    fails(good.replace(image, f"http://{image}"), r"line 3.*'http://")
    assert _services(engine, state) == []
    port = int(server.address.rpartition(":")[2])
    fails(good.replace("'8000'", f"'{port}:8000'"), str(port))
    fails(good + "    environment: {FAIL: 4}\n", r"(?s)status 4.*FAIL=4")
    file.write_text(good)
    assert deploy(engine, server, file).get("web") == "one"


def test_two_labs_never_touch_each_other(
    engine: Engine,
    server: RegistryServer,
    state: State,
    file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    other = State.open(tmp_path_factory.mktemp("other"))
    others = replace(engine, labels=other.labels)
    mine = deploy(engine, server, file)
    theirs = deploy(others, server, file)
    assert mine.get("web") == theirs.get("web") == "one"
    assert _services(engine, other) == [theirs.running["web"].name]
    assert remove_running(others) == [theirs.running["web"].name]
    assert mine.get("web") == "one"
