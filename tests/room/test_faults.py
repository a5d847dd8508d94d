"""What goes wrong in a room: each fault is the learner's whose it is, and work outlasts it."""

from __future__ import annotations

import contextlib
import time
from threading import Thread

import pytest
import requests
from visitors import CLASS, Learner

from labapp import room as rooms
from labapp.bench import Bench
from labapp.course.exercises import all_exercises
from labapp.errors import LabError
from labapp.machine.ports import wait_until
from labapp.registry.server import RegistryServer
from labapp.room import Room

LONG = "Maximilian " + "x" * 69
OPEN = "from labapp import open_lab\nlab = open_lab('00')"
SH = """
import subprocess
def sh(words): return subprocess.run(words, shell=True, capture_output=True, text=True).stdout
"""
FORKS = """
import subprocess
loop = "i=0; while [ $i -lt 3000 ]; do sleep 15 & i=$((i+1)); done"
told = {"capture_output": True, "text": True}
"""
BUILD = """
from pathlib import Path
folder = Path("work/slow"); folder.mkdir(parents=True, exist_ok=True)
base = lab.base("python:3.13-slim")
_ = (folder / "Dockerfile").write_text(f"FROM {base}\\nRUN sleep 25\\n")
made = lab.build(folder, tag=f"{lab.address}/slow:1")
"""


def learner(room: Room, name: str, password: str = "") -> Learner:
    return Learner(room.settings()["address"], name, password or f"the word of {name}")


def came(room: Room, name: str) -> Learner:
    found = learner(room, name)
    assert found.log_in(CLASS).status_code == 302
    found.spawn()
    return found


@pytest.fixture(scope="module")
def ann(room: Room) -> Learner:
    return came(room, "ann")


@pytest.fixture(scope="module")
def other(room: Room) -> Learner:
    return came(room, "Zoë of B")


def users(room: Room) -> dict[str, dict[str, object]]:
    return {each["name"]: each for each in room.ask("/users")}


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("Müller Zoë", 302),
        (LONG, 302),
        (f"{LONG}y", 403),
        ("../ann", 403),
        (" ", 403),
        ("a/b", 403),
        ("--hub", 403),
    ],
)
def test_names(room: Room, name: str, status: int) -> None:
    assert learner(room, name, f"the word of {name.lower()}").log_in(CLASS).status_code == status


@pytest.mark.parametrize(
    ("name", "same"), [("bea", "BEA"), ("ben", "Ben"), ("bär", "ba\u0308r"), ("bob", "\uff22ob")]
)
def test_another_spelling_is_nobody_else(room: Room, name: str, same: str) -> None:
    assert learner(room, name, "the right word").log_in(CLASS).status_code == 302
    assert learner(room, same, "another word").log_in(CLASS).status_code == 403
    assert learner(room, same, "the right word").log_in().status_code == 302
    assert same not in users(room)


@pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.long)])
def test_the_wrong_password_again_and_again(room: Room, times: int) -> None:
    mallory, began = learner(room, "cyd"), time.monotonic()
    assert mallory.log_in(CLASS).status_code == 302
    said = [learner(room, "cyd").log_in(password=f"guess {n}") for n in range(times)]
    assert {each.status_code for each in said} == {403}
    assert time.monotonic() - began >= times, "a guess costs a second"
    assert "Invalid username or password" in said[0].text
    # Nobody is shut out by somebody else's guesses.
    assert learner(room, "cyd").log_in().status_code == 302
    # Without the password of the class, nobody new comes in.
    assert learner(room, "dot").log_in("guess").status_code == 403
    assert learner(room, "dot").log_in().status_code == 403


def asked(room: Room, method: str, path: str) -> int:
    """Ask the hub's API, and return its status."""
    told = room.settings()
    with requests.Session() as session:
        session.trust_env = False
        headers = {"Authorization": f"token {told['token']}"}
        url = f"{told['address']}hub/api{path}"
        return session.request(method, url, headers=headers, timeout=60).status_code


def answers(room: Room) -> bool:
    with contextlib.suppress(LabError):
        return bool(room.ask("/users"))
    return False


def quickly(text: str) -> str:
    """Return the cell that builds, with something that takes no time."""
    return BUILD.replace("sleep 25", text)


@pytest.mark.long
def test_one_forks_until_the_limit(ann: Learner, other: Learner) -> None:
    said = ann.run(FORKS + "print(subprocess.run(['sh', '-c', loop], **told).stderr[-200:])")
    assert "fork" in said
    assert other.run("print(6 * 7)").strip() == "42"


@pytest.mark.long
def test_one_forks_in_a_container(ann: Learner, other: Learner) -> None:
    """What runs in an engine counts against that engine's limits."""
    time.sleep(16)  # until what was forked before has ended
    said = ann.run(
        OPEN + FORKS + "base = str(lab.base('python:3.13-slim'))\n"
        "words = ['docker', 'run', '--rm', base, 'sh', '-c', loop]\n"
        "print(subprocess.run(words, **told).stderr[-300:])\n"
    )
    assert "fork" in said
    assert other.run("print(6 * 7)").strip() == "42"


@pytest.mark.long
def test_one_fills_the_disk(ann: Learner, other: Learner) -> None:
    ann.run(OPEN + SH + "base = lab.base('python:3.13-slim')")
    # To the last kilobyte.
    fill = "dd if=/dev/zero of=/f bs=1M; dd if=/dev/zero of=/g bs=1k"
    try:
        said = ann.run(f"print(sh(f'docker run --name full {{base}} sh -c \"{fill}\" 2>&1'))")
        assert "No space left on device" in said
        told = ann.run(quickly("date > /x"), may_fail=True)
        assert "space" in told.lower(), "who has filled the disk is told"
        other.run(OPEN)
        other.run(quickly("date > /x"))
    finally:
        ann.run("print(sh('docker rm -f full'))")
    ann.run(quickly("date > /y"))


@pytest.mark.long
def test_an_engine_dies_in_mid_build(room: Room, ann: Learner) -> None:
    ann.run(OPEN + SH)

    def kill() -> None:
        time.sleep(6)
        engine = room.engine.container(f"{room.name}-ann--engine")
        assert engine is not None
        engine.exec_run(["sh", "-c", "kill -9 $(pidof dockerd)"])

    thread = Thread(target=kill)
    thread.start()
    said = ann.run(BUILD, may_fail=True)
    thread.join()
    assert "EngineLost" in said and "labapp start" in said
    look = "print(sh('docker info'))"
    assert wait_until(lambda: "Server Version" in ann.run(look), seconds=60, every=1)
    ann.run(OPEN)  # the first cell again, in the same kernel
    ann.run(quickly("true"))


@pytest.mark.long
def test_the_hub_is_started_anew_in_mid_build(room: Room, ann: Learner) -> None:
    ann.run(OPEN + SH + BUILD.rpartition("made = ")[0])
    ann.run("going = subprocess.Popen(['docker', 'build', '-q', '-t', 'slow', 'work/slow'])")
    hub = room.hub()
    assert hub is not None
    hub.restart(timeout=10)
    assert wait_until(lambda: answers(room), seconds=60, every=0.5)
    kernel, ann.channel = ann.kernel_id, None  # a browser, too, connects again
    assert ann.spawn() < 20, "the server that ran is found, and the login holds"
    assert ann.kernel_id == kernel
    assert ann.run("print(going.wait())").strip().endswith("0"), "the build went on"


def comes_back(room: Room, ann: Learner) -> None:
    """Wait until neither container of the pair is there, and log in to a new one."""
    names = (f"{room.name}-ann", f"{room.name}-ann--engine")
    assert wait_until(lambda: not any(map(room.engine.container, names)), seconds=90, every=0.5)
    ann.kernel_id, ann.channel = "", None
    assert ann.spawn() < 120


@pytest.mark.long
def test_an_engine_ends_with_its_lab(room: Room, ann: Learner) -> None:
    """Nobody stops a pair whose lab ended by itself: the hub sees that it has gone."""
    ann.run("open('work/mine.txt', 'w').write('kept')")
    lab = room.engine.container(f"{room.name}-ann")
    assert lab is not None
    lab.kill()
    comes_back(room, ann)
    assert ann.run("print(open('work/mine.txt').read())").strip() == "kept"


@pytest.mark.long
def test_who_was_culled_comes_back_to_the_work(room: Room, ann: Learner) -> None:
    ann.run(OPEN + "\nopen('work/mine.txt', 'w').write('kept')")
    hello = "hello = f'{lab.address}/hello/web:1.0'\nlab.tag(made.reference, hello)\n"
    solution = all_exercises()["00-tag"].solution
    ann.run(quickly("true") + hello + "lab.push(hello)\n" + solution)
    assert 'data-outcome="Correct"' in ann.run("lab.check('00-tag')")
    look = SH + "print(open('work/mine.txt').read(), sh('python3 -m labapp progress'))"
    before = ann.run(look)
    assert "kept" in before
    assert asked(room, "DELETE", "/users/ann/server") in {202, 204}
    comes_back(room, ann)
    assert ann.run(look) == before
    ann.run(OPEN)
    ann.run(quickly("true"))


@pytest.mark.long
def test_the_registry_of_the_class_is_down(bench: Bench, room: Room, ann: Learner) -> None:
    RegistryServer(engine=room.engine, state=room.state, kind=rooms.CLASS).stop()
    ann.run(OPEN + SH + quickly("true"))
    send = "print(sh('python3 -m labapp hand-in $LABAPP_CLASS_REPOSITORY/x --ca /run/lab/class.pem"
    said = ann.run(send + " --yes 2>&1; echo ended with $?'))")
    assert "Connection refused" in said and "ended with 1" in said and "Traceback" not in said
    # A learner's own registry is none the worse, and the class's is back with 'room start'.
    ann.run("lab.push(made.reference)")
    rooms.start(bench)
    ann.channel = None  # a browser, too, connects again
    assert ann.spawn() < 20
    host = "${LABAPP_CLASS_REPOSITORY%%/*}"
    said = ann.run(
        f"print(sh('docker pull {host}/base/python:3.13-slim 2>&1; "
        f"echo the word of ann | docker login -u ann --password-stdin {host} 2>&1'))"
    )
    assert "Login Succeeded" in said


@pytest.mark.long
def test_the_power_failed(bench: Bench, room: Room, ann: Learner) -> None:
    """What stands after the machine's start: all containers of the room ended, none in order."""
    ann.run(OPEN + "\nopen('work/mine.txt', 'w').write('kept')")
    ann.run(quickly("date > /kept") + "lab.push(made.reference)")
    look = SH + "print(open('work/mine.txt').read(), sh('docker image ls -q | sort'))"
    before = ann.run(look)
    assert "kept" in before
    mine = [f"{name}={value}" for name, value in room.labels.items()]
    for container in room.engine.client.containers.list(filters={"label": mine}):
        container.kill()
    rooms.start(bench)
    ann.kernel_id, ann.channel = "", None
    assert ann.spawn() < 120
    ann.run(OPEN)
    assert ann.run(look) == before
    ann.run("lab.pull(f'{lab.address}/slow:1')")
