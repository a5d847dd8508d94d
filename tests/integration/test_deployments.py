"""Deployments on the real engine: what a server runs, through every move of a tag."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from labapp import deployments, images, pins
from labapp.deployments import compose
from labapp.engine import Engine
from labapp.errors import DeploymentError
from labapp.feedback import QuietFeedback
from labapp.images import builds
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.registry.server import RegistryServer
from labapp.state import ROLE_LABEL, State
from labapp.system.ports import free_port


@pytest.fixture
def image(
    engine: Engine, server: RegistryServer, state: State, slim: Reference, tmp_path: Path
) -> Iterator[str]:
    """A web server that answers 'one', pushed."""
    name = f"{server.address}/test/{uuid.uuid4().hex[:8]}:1"
    _push(engine, server, state, slim, tmp_path, name, "one")
    yield name
    deployments.remove(engine, state, project="test-deployment")
    for image in engine.client.images.list(name=name.rpartition(":")[0]):
        engine.client.images.remove(image.id, force=True)


def _push(
    engine: Engine,
    server: RegistryServer,
    state: State,
    slim: Reference,
    folder: Path,
    name: str,
    text: str,
) -> str:
    context = folder / "context"
    context.mkdir(exist_ok=True)
    (context / "index.html").write_text(text)
    (context / "Dockerfile").write_text(
        f"FROM {slim}\nWORKDIR /site\nCOPY index.html .\n"
        'CMD ["python3", "-m", "http.server", "8000"]\n'
    )
    quiet = QuietFeedback()
    builds.build(engine, context, tag=name, labels=state.labels, feedback=quiet)
    return images.push(engine, server, name, feedback=quiet).digest


@pytest.fixture
def file(tmp_path: Path, image: str) -> Path:
    path = tmp_path / "deployment.yaml"
    path.write_text(
        f"name: test-deployment\nservices:\n  web:\n    image: {image}\n    ports: ['8000']\n"
    )
    return path


def _containers(engine: Engine) -> list[str]:
    found = engine.client.containers.list(all=True)
    return sorted(c.name for c in found if c.name.startswith("test-deployment-"))


def test_a_tag_moves_under_a_deployment_and_a_digest_does_not(
    engine: Engine,
    server: RegistryServer,
    registry: Registry,
    state: State,
    slim: Reference,
    image: str,
    file: Path,
    tmp_path: Path,
) -> None:
    quiet = QuietFeedback()

    def deploy() -> deployments.Deployment:
        return deployments.deploy(engine, server, file, state=state, feedback=quiet)

    repository = Reference.parse(image).repository
    one = registry.resolve(repository, "1")
    running = deploy()
    assert running.get("web") == "one"
    assert running.digest("web") == one
    [row] = running.table.to_dict("records")
    assert (row["service"], row["image"], row["digest"]) == ("web", image, one)
    container = engine.client.containers.get(row["container"])
    assert container.attrs["Config"]["Image"] == image
    assert container.labels[ROLE_LABEL] == "service"
    assert container.labels[deployments.DIGEST_LABEL] == one
    assert [b["HostIp"] for b in container.ports["8000/tcp"]] == ["127.0.0.1"]
    assert f"docker pull {image}" in quiet.commands
    if not compose.has_compose(engine):
        assert any(line.startswith("docker run -d --name") for line in quiet.commands)

    two = _push(engine, server, state, slim, tmp_path, image, "two")
    assert running.get("web") == "one"
    assert deploy().digest("web") == two
    assert len(_containers(engine)) == 1

    pins.pin_deployment(file, registry)
    assert f"@{two}" in file.read_text()
    three = _push(engine, server, state, slim, tmp_path, image, "three")
    again = deploy()
    assert again.get("web") == "two"
    assert again.digest("web") == two != three
    listed = deployments.deployments(engine, state)
    mine = listed[listed["deployment"] == again.project].to_dict("records")
    assert [(r["service"], r["digest"], r["status"]) for r in mine] == [("web", two, "running")]
    assert deployments.remove(engine, state, project=again.project) == [row["container"]]
    assert _containers(engine) == []


def test_services_environment_and_command(
    engine: Engine,
    server: RegistryServer,
    state: State,
    slim: Reference,
    image: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TAKEN_OVER", "from here")
    monkeypatch.delenv("NOT_SET", raising=False)
    port = free_port()
    file.write_text(f"""\
name: test-deployment
services:
  web:
    image: {image}
    ports: ["0.0.0.0:{port}:8000", "9000"]
  quiet:
    image: {image}
    environment: [A=b c, COST=$$5, TAKEN_OVER, NOT_SET]
    command: [python3, -c, "import os, time; print(sorted(os.environ.items()), flush=True);
      time.sleep(600)"]
""")
    quiet = QuietFeedback()
    running = deployments.deploy(engine, server, file, state=state, feedback=quiet)
    assert list(running.table["service"]) == ["web", "quiet"]
    assert list(running.table["url"]) == [f"http://127.0.0.1:{port}", ""]
    assert any("'0.0.0.0'" in line and "127.0.0.1" in line for line in quiet.lines)
    web = engine.client.containers.get(running.table["container"][0])
    assert {b["HostIp"] for bs in web.ports.values() for b in bs or ()} == {"127.0.0.1"}
    printed = running.logs("quiet")
    for pair in ("('A', 'b c')", "('COST', '$5')", "('TAKEN_OVER', 'from here')"):
        assert pair in printed
    assert "NOT_SET" not in printed
    with pytest.raises(DeploymentError, match=r"service 'nope'.* has 'web', 'quiet'"):
        running.get("nope")

    # A service that the file does not name any more goes.
    file.write_text(f"name: test-deployment\nservices:\n  web:\n    image: {image}\n")
    deployments.deploy(engine, server, file, state=state, feedback=quiet)
    assert len(_containers(engine)) == 1


def test_when_the_registry_is_down_what_runs_goes_on(
    engine: Engine, server: RegistryServer, state: State, image: str, file: Path
) -> None:
    quiet = QuietFeedback()
    running = deployments.deploy(engine, server, file, state=state, feedback=quiet)
    before = engine.client.containers.get(running.table["container"][0]).id
    registry_image = str(state.read("registry")["image"])
    server.stop(feedback=quiet)
    try:
        with pytest.raises(DeploymentError, match=r"nothing answers.*goes on running"):
            deployments.deploy(engine, server, file, state=state, feedback=quiet)
        assert running.get("web") == "one"
        assert engine.client.containers.get(running.table["container"][0]).id == before
    finally:
        server.start(image=registry_image, feedback=quiet)
    again = deployments.deploy(engine, server, file, state=state, feedback=quiet)
    assert engine.client.containers.get(again.table["container"][0]).id != before


def test_what_goes_wrong(
    engine: Engine, server: RegistryServer, state: State, image: str, file: Path
) -> None:
    quiet = QuietFeedback()
    good = file.read_text()

    def fails(text: str, said: str) -> None:
        file.write_text(text)
        with pytest.raises(DeploymentError, match=said):
            deployments.deploy(engine, server, file, state=state, feedback=quiet)

    fails(good.replace(image, f"{image}x"), r"line 4, service 'web': .*no tag '1x'")
    fails(good.replace("ports", "port"), r"line 5: 'port' is not supported")
    fails(good.replace(image, f"http://{image}"), r"line 4.*'http://' is in front")
    assert _containers(engine) == []
    port = int(server.address.rpartition(":")[2])
    fails(good.replace("'8000'", f"'{port}:8000'"), f"{port}.*(allocated|in use)")
    fails(good + "    command: [python3, -c, 'print(5*5); exit(4)']\n", r"status 4.*\n.*25")
    file.write_text(good)
    assert deployments.deploy(engine, server, file, state=state, feedback=quiet).get("web") == "one"


def test_two_labs_never_touch_each_other(
    engine: Engine,
    server: RegistryServer,
    state: State,
    file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    other = State.open(tmp_path_factory.mktemp("other"))
    quiet = QuietFeedback()
    mine = deployments.deploy(engine, server, file, state=state, feedback=quiet)
    theirs = deployments.deploy(engine, server, file, state=other, feedback=quiet)
    assert mine.get("web") == theirs.get("web") == "one"
    assert list(deployments.deployments(engine, other)["container"]) == list(
        theirs.table["container"]
    )
    assert deployments.remove(engine, other) == list(theirs.table["container"])
    assert mine.get("web") == "one"
