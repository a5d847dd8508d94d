"""Deployments and pins on the real engine: what a server runs, through every move of a tag."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labapp.errors import DeploymentError
from labapp.feedback import QuietFeedback
from labapp.journey.bases import SLIM
from labapp.journey.build import build
from labapp.journey.deploy import DIGEST_LABEL, deploy
from labapp.journey.pin import Change, pin, pin_deployment, pin_dockerfile
from labapp.journey.run import containers, remove_running, run_once
from labapp.journey.transfer import push
from labapp.machine.engine import Engine
from labapp.machine.ports import free_port
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.server import RegistryServer
from labapp.state import ROLE_LABEL, State


@pytest.fixture
def push_site(
    engine: Engine, server: RegistryServer, build_site: Callable[[str, str], str]
) -> Callable[[str, str], str]:
    """Build and push a web server that answers with a text; return its digest."""
    return lambda name, text: push(engine, server, build_site(name, text)).digest


@pytest.fixture
def image(
    engine: Engine, server: RegistryServer, push_site: Callable[[str, str], str]
) -> Iterator[str]:
    """A web server that prints its environment and answers 'one', pushed."""
    name = f"{server.address}/test/{uuid.uuid4().hex[:8]}:1"
    push_site(name, "one")
    yield name
    remove_running(engine)
    for _ in range(2):  # One that was built last may stand on one that it copied from.
        for image in engine.client.images.list(name=name.rpartition(":")[0]):
            engine.client.images.remove(image.id, force=True)


@pytest.fixture
def file(tmp_path: Path, image: str) -> Path:
    path = tmp_path / "deployment.yaml"
    path.write_text(f"services:\n  web:\n    image: {image}\n    ports: ['8000']\n")
    return path


def _services(engine: Engine) -> list[str]:
    return [str(container.name) for container in containers(engine, {ROLE_LABEL: "service"})]


def test_a_tag_moves_under_a_deployment_and_a_digest_does_not(
    engine: Engine,
    server: RegistryServer,
    registry: Registry,
    push_site: Callable[[str, str], str],
    image: str,
    file: Path,
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

    two = push_site(image, "two")
    assert running.get("web") == "one"
    assert deploy(engine, server, file).digest("web") == two
    assert told.commands[-2:] == [f"docker rm --force {name}", shown]
    assert _services(engine) == [name]

    pin_deployment(file, registry)
    assert f"@{two}" in file.read_text()
    three = push_site(image, "three")
    again = deploy(engine, server, file)
    assert again.get("web") == "two"
    assert again.digest("web") == two != three


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


def test_what_goes_wrong(engine: Engine, server: RegistryServer, image: str, file: Path) -> None:
    good = file.read_text()

    def fails(text: str, fact: str) -> None:
        file.write_text(text)
        with pytest.raises(DeploymentError, match=fact):
            deploy(engine, server, file)

    running = deploy(engine, server, file)
    before = engine.client.containers.get(running.running["web"].name).id
    fails(good.replace(image, f"{image}x"), r"line 3, service 'web': .*'1x'")
    fails(good.replace("ports", "port"), r"line 4: .*port")
    fails(good.replace(image, f"http://{image}"), r"line 3.*'http://")
    server.stop()
    try:
        fails(good, server.address)
    finally:
        server.start()
    assert running.get("web") == "one"
    assert engine.client.containers.get(running.running["web"].name).id == before
    port = int(server.address.rpartition(":")[2])
    fails(good.replace("'8000'", f"'{port}:8000'"), str(port))
    fails(good + "    environment: {FAIL: 4}\n", r"(?s)status 4.*FAIL=4")
    file.write_text(good)
    again = deploy(engine, server, file)
    assert again.get("web") == "one"
    assert engine.client.containers.get(again.running["web"].name).id != before


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


def test_what_is_pinned_builds_the_same_after_the_tag_moved(
    engine: Engine,
    server: RegistryServer,
    registry: Registry,
    push_site: Callable[[str, str], str],
    image: str,
    tmp_path: Path,
) -> None:
    one = registry.digest(image)
    assert pin(registry, image) == Reference.parse(image).pinned(one)
    page = tmp_path / "page"
    page.mkdir()
    base = f"{registry.address}/base/{SLIM}"
    (page / "Dockerfile").write_text(
        f"ARG BASE={base}\nFROM ${{BASE}}\nCOPY --from={image} /site/index.html /text\n"
    )
    assert pin_dockerfile(page / "Dockerfile", registry) == [
        Change(1, base, f"{base}@{registry.digest(base)}"),
        Change(3, image, f"{image}@{one}"),
    ]
    two = push_site(image, "two")
    assert pin(registry, image).digest == two != one
    # The engine has to fetch the pinned image anew: nothing else here names it any more.
    made = build(engine, page, tag=f"{image.rpartition(':')[0]}:page")
    assert run_once(engine, made.reference, ["cat", "/text"]) == "one"
