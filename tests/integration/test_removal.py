"""Reset takes away what one lab made, and nothing else on the engine."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker.errors
import pytest

from labapp import reset
from labapp.machine.engine import Engine
from labapp.reset import Thing
from labapp.state import State

ADDRESS = "localhost:59999"


@pytest.fixture
def lab(tmp_path: Path) -> State:
    """A lab that has things on the engine, beside those of the other tests."""
    state = State.open(tmp_path / "state")
    state.write("registry", {"port": 59999})
    return state


@pytest.fixture(params=[None, "0badcafe"])
def stranger(engine: Engine, request: pytest.FixtureRequest) -> Iterator[str]:
    """What somebody else, or another lab, has on the engine: image, container, volume, network."""
    name = "labtest-stranger"
    make(engine, name, label=request.param)
    engine.client.api.tag(f"{name}/image:1", "labapp/registry", "0badcafe")
    yield name
    engine.client.api.remove_image("labapp/registry:0badcafe")
    remove(engine, name)


def make(engine: Engine, name: str, *, label: str | None) -> None:
    api = engine.client.api
    labels = {"labapp.lab": label} if label else {}
    changes = [f"LABEL labapp.lab={label}"] if label else []
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(f"{name}.txt"))
    api.import_image_from_data(
        content.getvalue(), repository=f"{name}/image", tag="1", changes=changes
    )
    api.create_volume(name, labels=labels)
    api.create_network(name, labels=labels)
    api.create_container(f"{name}/image:1", ["/x"], name=name, labels=labels)


def remove(engine: Engine, name: str) -> None:
    api = engine.client.api
    api.remove_container(name)
    api.remove_network(name)
    api.remove_volume(name)
    api.remove_image(f"{name}/image:1")


def exists(engine: Engine, name: str) -> list[bool]:
    """Whether container, network, volume and image of a name are there."""
    api = engine.client.api
    found = []
    for ask in (
        lambda: api.inspect_container(name),
        lambda: api.inspect_network(name),
        lambda: api.inspect_volume(name),
        lambda: api.inspect_image(f"{name}/image:1"),
    ):
        try:
            ask()
        except docker.errors.NotFound:
            found.append(False)
        else:
            found.append(True)
    return found


def test_reset_removes_what_is_the_labs_and_nothing_else(
    engine: Engine,
    lab: State,
    stranger: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    name = f"labtest-{lab.lab_id}"
    make(engine, name, label=lab.lab_id)
    # Somebody else's image under names of this lab loses those, and stays.
    engine.client.api.tag(f"{stranger}/image:1", f"{ADDRESS}/shop/web", "1")
    engine.client.api.tag(f"{stranger}/image:1", "labapp/registry", lab.lab_id)
    work = tmp_path / "work"
    (work / "app").mkdir(parents=True)

    plan = reset.plan(lab, work=work)
    assert set(plan.things) == {
        Thing("container", name),
        Thing("network", name),
        Thing("volume", name),
        Thing("image", f"{name}/image:1"),
        Thing("image", f"{ADDRESS}/shop/web:1"),
        Thing("image", f"labapp/registry:{lab.lab_id}"),
    }
    assert plan.lines()[0] == f"container {name}"
    assert exists(engine, name) == [True] * 4, "a plan removes nothing"

    assert reset.carry_out(plan) == []
    assert exists(engine, name) == [False] * 4
    assert exists(engine, stranger) == [True] * 4
    assert engine.image(f"{ADDRESS}/shop/web:1") is None
    assert engine.image("labapp/registry:0badcafe") is not None
    assert not work.exists()
    assert lab.read("registry") == {}
    assert State.open(lab.folder).lab_id == lab.lab_id
    # Once more over what is gone, as after an interrupted reset.
    assert reset.carry_out(plan) == []


def test_what_is_still_used_by_somebody_else_is_told(
    engine: Engine, lab: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    name = f"labtest-{lab.lab_id}"
    make(engine, name, label=lab.lab_id)
    # A container takes over its image's labels; only one that says otherwise is not the lab's.
    guest = engine.client.api.create_container(
        f"{name}/image:1", ["/x"], name="labtest-guest", labels={"labapp.lab": "theirs"}
    )
    try:
        plan = reset.plan(lab)
        [left] = reset.carry_out(plan)
        assert left.startswith(f"image {name}/image:1: ")
    finally:
        engine.client.api.remove_container(guest["Id"])
    assert reset.carry_out(plan) == []
    assert exists(engine, name) == [False] * 4


def test_what_was_run_by_hand_from_the_labs_registry_goes_too(
    engine: Engine, lab: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    name, image = f"labtest-{lab.lab_id}", f"{ADDRESS}/by/hand:1"
    make(engine, name, label=None)
    engine.client.api.tag(f"{name}/image:1", image)
    engine.client.api.create_container(image, ["/x"], name=f"{name}-by-hand")
    plan = reset.plan(lab)
    assert plan.things == (Thing("container", f"{name}-by-hand"), Thing("image", image))
    assert reset.carry_out(plan) == []
    assert exists(engine, name) == [True] * 4
    remove(engine, name)


def test_everything_includes_the_state_folder(
    engine: Engine, lab: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    plan = reset.plan(lab, everything=True)
    assert plan.lines() == [f"'{lab.folder}'"]
    assert reset.carry_out(plan) == []
    assert not lab.folder.exists()
