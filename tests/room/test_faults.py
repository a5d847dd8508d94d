"""What goes wrong in a room: each fault is the learner's whose it is, and work outlasts it."""

from __future__ import annotations

import re
import time

import pytest
import requests
from conftest import CLASS  # type: ignore[import-not-found]
from visitors import Learner

from labapp.machine.ports import wait_until
from labapp.room import Room

LONG = "Maximilian " + "x" * 69
OPEN = "from labapp import open_lab\nlab = open_lab('00')"
BUILD = """
from pathlib import Path
folder = Path("work/slow"); folder.mkdir(parents=True, exist_ok=True)
base = lab.base("python:3.13-slim")
_ = (folder / "Dockerfile").write_text(f"FROM {base}\\nRUN sleep 25\\n")
lab.build(folder, tag=f"{lab.address}/slow:1")
"""


def learner(room: Room, name: str, password: str = "") -> Learner:
    return Learner(room.settings()["address"], name, password or f"the word of {name}")


def came(room: Room, name: str) -> Learner:
    found = learner(room, name)
    assert found.log_in(CLASS).status_code == 302
    found.spawn()
    return found


@pytest.fixture(scope="module")
def ada(room: Room) -> Learner:
    return came(room, "ada")


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
        ("../ada", 403),
        (" ", 403),
        ("a/b", 403),
        ("--hub", 403),
        ("ada", 302),
        ("ADA", 302),  # that is ada, who knows the password of ada
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


def test_the_wrong_password_ten_times(room: Room) -> None:
    mallory, began = learner(room, "cyd"), time.monotonic()
    assert mallory.log_in(CLASS).status_code == 302
    said = [learner(room, "cyd").log_in(password=f"guess {n}") for n in range(10)]
    assert {each.status_code for each in said} == {403}
    assert time.monotonic() - began >= 10, "a guess costs a second"
    assert "Invalid username or password" in said[0].text
    # Nobody is shut out by somebody else's guesses.
    assert learner(room, "cyd").log_in().status_code == 302
    # Without the password of the class, nobody new comes in.
    assert learner(room, "dot").log_in("guess").status_code == 403
    assert learner(room, "dot").log_in().status_code == 403


@pytest.mark.long
class TestFaults:
    def test_one_forks_until_the_limit(self, ada: Learner, other: Learner) -> None:
        said = ada.run(
            "import os, time, signal\nmade = []\ntry:\n"
            "    while len(made) < 5000:\n"
            "        pid = os.fork()\n"
            "        if not pid: time.sleep(60); os._exit(0)\n"
            "        made.append(pid)\n"
            "except OSError as error: print('refused', error.errno, len(made))\n"
            "for pid in made: os.kill(pid, signal.SIGKILL)\n"
            "for pid in made: os.waitpid(pid, 0)\n"
        )
        count = re.search(r"refused 11 (\d+)", said)
        assert count and int(count[1]) < 1024
        began = time.monotonic()
        assert other.run("print(6 * 7)").strip() == "42"
        assert time.monotonic() - began < 20

    def test_one_forks_in_a_container(self, ada: Learner, other: Learner) -> None:
        """What runs in the engine counts against the engine's limits."""
        ada.run(OPEN)
        said = ada.run(
            "import subprocess\n"
            "loop = 'i=0; while [ $i -lt 3000 ]; do sleep 20 & i=$((i+1)); done'\n"
            "base = lab.base('python:3.13-slim')\n"
            "words = ['docker', 'run', '--rm', str(base), 'sh', '-c', loop]\n"
            "told = subprocess.run(words, capture_output=True, text=True)\n"
            "print(told.returncode, told.stderr[-300:])\n"
        )
        assert "fork" in said
        assert other.run("print(6 * 7)").strip() == "42"

    def test_one_fills_the_disk(self, room: Room, ada: Learner, other: Learner) -> None:
        other.run(OPEN)
        said = ada.run(
            OPEN + "\n"
            "import subprocess\n"
            "base = lab.base('python:3.13-slim')\n"
            "fill = 'dd if=/dev/zero of=/f bs=1M count=6000 2>&1 | tail -3; sync'\n"
            "words = ['docker', 'run', '--name', 'full', str(base), 'sh', '-c', fill]\n"
            "told = subprocess.run(words, capture_output=True, text=True)\n"
            "print(told.stdout, told.stderr)\n"
        )
        assert "No space left on device" in said
        told = ada.run(BUILD.replace("sleep 25", "date > /x"), may_fail=True)
        assert "space" in told.lower(), "who has filled the disk is told"
        assert "Successfully" in other.run(
            BUILD.replace("sleep 25", "date > /x") + "\nimport subprocess\nprint('Successfully',"
            " subprocess.run(['docker', 'image', 'inspect', f'{lab.address}/slow:1'],"
            " capture_output=True, check=True).returncode)"
        )
        # And helps oneself.
        ada.run("print(subprocess.run(['docker', 'rm', '-f', 'full'], check=True))")
        ada.run(BUILD.replace("sleep 25", "date > /y"))

    def test_an_engine_dies_in_mid_build(self, room: Room, ada: Learner) -> None:
        ada.run(OPEN)
        name = f"{room.name}-ada--engine"

        def kill() -> None:
            time.sleep(6)
            engine = room.engine.container(name)
            assert engine is not None
            engine.exec_run(["sh", "-c", "kill -9 $(pidof dockerd)"])

        from threading import Thread

        thread = Thread(target=kill)
        thread.start()
        said = ada.run(BUILD, may_fail=True)
        thread.join()
        assert "EngineLost" in said and "labapp start" in said
        assert wait_until(
            lambda: (
                "Server Version" in ada.run("print(sh('docker info'))", may_fail=True)
                if ada.run(SH)
                else False
            ),
            seconds=40,
            every=1,
        )
        ada.run(OPEN)  # the next cell works, in the same kernel
        ada.run(BUILD.replace("sleep 25", "true"))

    def test_the_hub_is_started_anew_in_mid_build(self, room: Room, ada: Learner) -> None:
        ada.run(OPEN)
        ada.run(SH)
        ada.run("import subprocess\n" + BUILD.rpartition("lab.build")[0])
        ada.run(
            "going = subprocess.Popen(['docker', 'build', '-t', 'slow', 'work/slow'],"
            " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)"
        )
        hub = room.hub()
        assert hub is not None
        hub.restart(timeout=10)
        assert wait_until(lambda: answers(room), seconds=60, every=0.5)
        again = learner(room, "ada")
        assert again.log_in().status_code == 302
        assert again.spawn() < 20, "the server that ran is found"
        assert again.run("print(1)").strip() == "1"
        ada._kernel = None
        ada.session = again.session
        assert room.engine.container(f"{room.name}-ada") is not None

    def test_who_was_culled_comes_back_to_the_work(self, room: Room, ada: Learner) -> None:
        from labapp.course.exercises import all_exercises

        ada.run(OPEN)
        ada.run("open('work/mine.txt', 'w').write('kept')")
        ada.run(all_exercises()["00-hello"].solution if "00-hello" in all_exercises() else "")
        before = ada.run("print(open('/home/learner/.local/state/labapp/id').read())")
        stopped = delete(room, "/users/ada/server")
        assert stopped in {202, 204}
        assert wait_until(
            lambda: (
                room.engine.container(f"{room.name}-ada--engine") is None
                and room.engine.container(f"{room.name}-ada") is None
            ),
            seconds=60,
            every=0.5,
        )
        ada._kernel = None
        assert ada.spawn() < 120
        assert ada.run("print(open('work/mine.txt').read())").strip() == "kept"
        assert ada.run("print(open('/home/learner/.local/state/labapp/id').read())") == before
        ada.run(OPEN)
        ada.run(BUILD.replace("sleep 25", "true"))


SH = """
import subprocess
def sh(words): return subprocess.run(words, shell=True, capture_output=True, text=True).stdout
print("ready")
"""


def answers(room: Room) -> bool:
    try:
        return bool(room.ask("/users"))
    except Exception:
        return False


def delete(room: Room, path: str) -> int:
    told = room.settings()
    url = f"{told['address']}hub/api{path}"
    with requests.Session() as session:
        session.trust_env = False
        headers = {"Authorization": f"token {told['token']}"}
        return session.delete(url, headers=headers, timeout=60).status_code
