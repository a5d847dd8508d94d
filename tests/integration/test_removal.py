"""Reset takes away what one lab made, and nothing else on the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from labapp import reset
from labapp.machine.engine import Engine, tar_of
from labapp.state import State

ADDRESS = "localhost:59999"


@pytest.fixture
def lab(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """A lab that has things on the engine, beside those of the other tests."""
    monkeypatch.setenv("DOCKER_HOST", engine.host)
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
    content = tar_of({f"{name}.txt": b""})
    api.import_image_from_data(content, repository=f"{name}/image", tag="1", changes=changes)
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
    found = (
        api.containers(all=True, filters={"name": name}),
        api.networks(names=[name]),
        api.volumes(filters={"name": name})["Volumes"],
        engine.image(f"{name}/image:1"),
    )
    return [bool(each) for each in found]


def test_reset_removes_what_is_the_labs_and_nothing_else(
    engine: Engine, lab: State, stranger: str, tmp_path: Path
) -> None:
    name, api = f"labtest-{lab.lab_id}", engine.client.api
    make(engine, name, label=lab.lab_id)
    # Somebody else's image under names of this lab loses those, and stays.
    api.tag(f"{stranger}/image:1", f"{ADDRESS}/shop/web", "1")
    api.tag(f"{stranger}/image:1", "labapp/registry", lab.lab_id)
    # A container takes over its image's labels; only one that says otherwise is not the lab's.
    theirs = {"labapp.lab": "theirs"}
    guest = api.create_container(f"{name}/image:1", ["/x"], name="labtest-guest", labels=theirs)
    work = tmp_path / "work"
    (work / "app").mkdir(parents=True)

    plan = reset.plan(lab, work=work)
    assert set(plan.things) == {
        f"container {name}",
        f"network {name}",
        f"volume {name}",
        f"image {name}/image:1",
        f"image {ADDRESS}/shop/web:1",
        f"image labapp/registry:{lab.lab_id}",
    }
    assert exists(engine, name) == [True] * 4, "a plan removes nothing"

    [left] = reset.carry_out(plan)
    assert left.startswith(f"image {name}/image:1: "), "somebody else's container still uses it"
    api.remove_container(guest["Id"])
    assert reset.carry_out(plan) == []
    assert exists(engine, name) == [False] * 4
    assert exists(engine, stranger) == [True] * 4
    assert engine.image(f"{ADDRESS}/shop/web:1") is None
    assert engine.image("labapp/registry:0badcafe") is not None
    assert not work.exists()
    assert lab.read("registry") == {}
    assert State.open(lab.folder).lab_id == lab.lab_id


def test_what_was_run_by_hand_from_the_labs_registry_goes_too(engine: Engine, lab: State) -> None:
    name, image = f"labtest-{lab.lab_id}", f"{ADDRESS}/by/hand:1"
    make(engine, name, label=None)
    engine.client.api.tag(f"{name}/image:1", image)
    engine.client.api.create_container(image, ["/x"], name=f"{name}-by-hand")
    plan = reset.plan(lab)
    assert plan.things == (f"container {name}-by-hand", f"image {image}")
    assert reset.carry_out(plan) == []
    assert exists(engine, name) == [True] * 4
    remove(engine, name)
