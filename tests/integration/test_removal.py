"""Reset takes away what one lab made, and nothing else on the engine."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker.errors
import pytest

from labapp import removal
from labapp.engine import Engine
from labapp.feedback import QuietFeedback
from labapp.removal import Thing
from labapp.state import State

ADDRESS = "localhost:59999"


@pytest.fixture
def lab(tmp_path: Path) -> State:
    """A lab that has things on the engine, beside those of the other tests."""
    state = State.open(tmp_path / "state")
    state.write("registry", {"port": 59999})
    return state


@pytest.fixture
def stranger(engine: Engine) -> Iterator[str]:
    """What somebody else has on the same engine: image, container, volume and network."""
    name = "labtest-stranger"
    make(engine, name, label=None)
    yield name
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
    # Somebody else's image under this lab's registry loses that name, and stays.
    engine.client.api.tag(f"{stranger}/image:1", f"{ADDRESS}/shop/web", "1")
    work = tmp_path / "work"
    (work / "app").mkdir(parents=True)

    plan = removal.plan(lab, work=work, feedback=QuietFeedback())
    assert set(plan.things) == {
        Thing("container", name),
        Thing("network", name),
        Thing("volume", name),
        Thing("image", f"{name}/image:1"),
        Thing("image", f"{ADDRESS}/shop/web:1"),
    }
    assert plan.lines()[0] == f"container {name}"
    assert exists(engine, name) == [True] * 4, "a plan removes nothing"

    assert removal.carry_out(plan, feedback=QuietFeedback()) == []
    assert exists(engine, name) == [False] * 4
    assert exists(engine, stranger) == [True] * 4
    with pytest.raises(docker.errors.ImageNotFound):
        engine.client.images.get(f"{ADDRESS}/shop/web:1")
    assert not work.exists()
    assert lab.read("registry") == {}
    assert State.open(lab.folder).lab_id == lab.lab_id
    # Once more over what is gone, as after an interrupted reset.
    assert removal.carry_out(plan, feedback=QuietFeedback()) == []


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
        plan = removal.plan(lab, feedback=QuietFeedback())
        [left] = removal.carry_out(plan, feedback=QuietFeedback())
        assert left.startswith(f"image {name}/image:1: ")
    finally:
        engine.client.api.remove_container(guest["Id"])
    assert removal.carry_out(plan, feedback=QuietFeedback()) == []
    assert exists(engine, name) == [False] * 4


def test_everything_includes_the_state_folder(
    engine: Engine, lab: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    plan = removal.plan(lab, everything=True, feedback=QuietFeedback())
    assert plan.lines() == [f"'{lab.folder}'"]
    assert removal.carry_out(plan, feedback=QuietFeedback()) == []
    assert not lab.folder.exists()
