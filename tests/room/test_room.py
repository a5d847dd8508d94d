"""A room of learners: they come in, work at the same time, and neither see nor harm each other."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_chapters import FILES, read, then_solved
from visitors import CLASS, Learner, View

from labapp.course.exercises import all_exercises
from labapp.course.hand_in import Place, collect
from labapp.course.report import report
from labapp.course.signatures import read_key
from labapp.machine.ports import wait_until
from labapp.room import Room

THROUGH = """
import fcntl, socket, struct, sys
def packed(address): return struct.pack("HH4s8x", 2, 0, socket.inet_aton(address))
to, by = map(packed, sys.argv[1:])
route = struct.pack("Q16s16s16sH62x", 0, to, by, packed("255.255.255.255"), 3)
fcntl.ioctl(socket.socket(), 0x890B, route)  # SIOCADDRT; it outlasts this program
socket.create_connection((sys.argv[1], 9000), timeout=4)
"""
"""How root connects to an address by way of another one."""


def solve(learner: Learner, number: str) -> list[str]:
    """Run a chapter's cells in a learner's kernel, its exercises solved; return the verdicts."""
    file = next(each for each in FILES if each.name.startswith(number))
    said = [
        learner.run(cell.source)
        for cell in then_solved(read(file).cells)
        if cell.cell_type == "code" and cell.id != "clean-up"
    ]
    return re.findall(r'class="labapp-verdict" data-outcome="(\w+)"', "\n".join(said))


@pytest.fixture(scope="module")
def pair(room: Room) -> list[Learner]:
    """Two learners with servers that run, who came at the same time."""
    url = room.settings()["address"]
    both = [Learner(url, name, f"the word of {name}") for name in ("ada", "Jörg Öz")]
    for each in both:
        assert each.log_in(CLASS).status_code == 302
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(Learner.spawn, both))
    return both


def both_solve(pair: list[Learner], number: str) -> None:
    with ThreadPoolExecutor(2) as threads:
        verdicts = list(threads.map(lambda each: solve(each, number), pair))
    count = sum(id.startswith(number) for id in all_exercises())
    assert verdicts == [["NotYet", "Correct"] * count] * 2


def test_two_solve_the_first_chapter_at_the_same_time(pair: list[Learner]) -> None:
    both_solve(pair, "00")


def test_the_teacher_sees_who_has_passed_and_who_asks(
    room: Room, view: View, pair: list[Learner]
) -> None:
    passed = [id for id in all_exercises() if id.startswith("00")]
    assert "has it" in pair[1].run("lab.help('Which <b>port</b>?')")
    for each, asks in zip(pair, (False, True), strict=True):
        page = view.browser(view.teacher).get(view.place, timeout=20)
        rows = page.text.partition("</tbody>")[0].split("<tr class=")
        (row,) = (row for row in rows if f">{each.name.lower()}<" in row)
        assert row.count('class="cell alone') == len(passed)
        assert "Which &lt;b&gt;port&lt;/b&gt;?" in page.text and row.startswith('"asks"') == asks
    key, ids = read_key(view.folder / "key.pub"), list(all_exercises())
    signed = report(view.folder, ids, key=key).learners.set_index("learner")["signed"]
    assert [signed[each.name.lower()] for each in pair] == [len(passed)] * 2


def test_what_runs_opens_in_the_browser_through_the_hub(pair: list[Learner]) -> None:
    ada, other = pair
    said = ada.run("again = lab.run(hello, name='again', wait_for='/')\nprint(again.url)")
    url = re.findall(r"http\S+/proxy/\d+/", said)[-1]
    page = ada.session.get(url, timeout=30)
    assert page.ok and page.text.strip() == ada.run("print(again.get('/'))").strip()
    # It is behind the learner's own login.
    refused = other.session.get(url, timeout=30)
    assert refused.status_code in {403, 404} and page.text.strip() not in refused.text


def test_each_may_push_to_a_place_of_the_class(room: Room, pair: list[Learner]) -> None:
    said = pair[0].run("""
import os, subprocess
base, place = str(lab.base("python:3.13-slim")), os.environ["LABAPP_CLASS_REPOSITORY"]
host = place.partition("/")[0]
def done(words): return subprocess.run(words, shell=True, capture_output=True, text=True).returncode
print([
    done(f"echo 'wrong' | docker login -u ada --password-stdin {host}"),
    done(f"echo 'the word of ada' | docker login -u ada --password-stdin {host}"),
    done(f"docker pull {base} && docker tag {base} {place}/web:1 && docker push {place}/web:1"),
    done(f"docker tag {base} {host}/class/other/web:1 && docker push {host}/class/other/web:1"),
    done(f"docker pull {host}/base/python:3.13-slim"),
    done(f"docker tag {base} {host}/base/python:mine && docker push {host}/base/python:mine"),
])
""")
    assert json.loads(said.strip()) == [1, 0, 0, 1, 0, 1]
    said = pair[0].run("""
told = f"python3 -m labapp hand-in {place}/hand-in --ca /run/lab/class.pem --yes"
print(subprocess.run(told, shell=True, capture_output=True, text=True))
""")
    assert "returncode=0" in said and "Handed in" in said, said
    # The teacher finds it below the class's place.
    registry, told = room.registry(), room.settings()
    mine = registry.registry(told["teacher"], told["teacher_password"])
    (found,) = collect(Place(mine, "class"))
    record = found[2]()
    assert record.learner == "ada" and all(map(found[1].has, record.images))


def test_neither_has_a_right_on_the_machine(room: Room, pair: list[Learner]) -> None:
    for container in room.engine.client.containers.list(filters={"label": "labapp.role=room"}):
        told = container.attrs["HostConfig"]
        if not str(container.name).endswith(("--hub", "--engine")):
            assert told["CapDrop"] == ["ALL"] and not told["Privileged"]
            assert not any("docker.sock" in each for each in told["Binds"])
    said = pair[0].run("print(open('/proc/self/status').read())")
    assert re.search(r"CapBnd:\s0{16}", said) and re.search(r"NoNewPrivs:\s1", said)


def test_no_way_leads_through_a_neighbours_engine(room: Room, pair: list[Learner]) -> None:
    """Who has broken out of a container is root in an engine, and may send packets anywhere.

    What is published on loopback would take them, by the container's own address.
    """
    serve = """
import subprocess
from labapp import open_lab
lab = open_lab("00")
def sh(words): return subprocess.run(words, shell=True, capture_output=True, text=True).stdout
base, serving = lab.base("python:3.13-slim"), "python3 -m http.server 9000"
started = sh(f"docker run -d -p 127.0.0.1::9000 {base} {serving}").strip()
print(sh(f"docker inspect -f '{{{{.NetworkSettings.IPAddress}}}}' {started}"))
print(sh("hostname -i").split()[0])
"""
    *_, inside, neighbour = pair[1].run(serve).split()
    reach = f"import socket; print(socket.create_connection(('{inside}', 9000), timeout=4))"
    assert wait_until(lambda: "raddr" in pair[1].run(reach, may_fail=True), seconds=10)
    engine = room.engine.container(f"{room.name}-ada--engine")
    assert engine is not None
    code, said = engine.exec_run(["python3", "-c", THROUGH, inside, neighbour])
    assert code == 1 and b"timed out" in said.splitlines()[-1]


@pytest.mark.long
@pytest.mark.parametrize("number", [file.name[:2] for file in FILES[1:]])
def test_two_solve_each_other_chapter_at_the_same_time(pair: list[Learner], number: str) -> None:
    both_solve(pair, number)


def test_one_sees_and_harms_nothing_of_the_other(room: Room, pair: list[Learner]) -> None:
    ada, other = pair
    look = """
import subprocess, json, requests
def sh(words): return subprocess.run(words, shell=True, capture_output=True, text=True).stdout
print(json.dumps({
    "containers": sh("docker ps -aq").split(),
    "volumes": sh("docker volume ls -q").split(),
    "catalog": requests.get(f"http://{lab.address}/v2/_catalog").json()["repositories"],
    "address": sh("hostname -i").split()[0], "port": lab.address.rpartition(":")[2],
    "files": sh("ls /home"),
}))
"""
    before = json.loads(other.run(look).strip())
    seen = json.loads(ada.run(look).strip())
    assert not {*seen["containers"]} & {*before["containers"]}
    assert not {*seen["volumes"]} & {*before["volumes"]}
    # The other's registry is on the other's loopback; the other's server asks for a login.
    tries = f"""
import requests
for port in ({before["port"]}, 2375, 8888):
    try: print(requests.get(f"http://{before["address"]}:{{port}}/v2/", timeout=3).status_code)
    except requests.RequestException as error: print(type(error).__name__)
print(requests.get("http://{before["address"]}:8888/user/x/api/contents", timeout=5).status_code)
"""
    said = ada.run(tries).split()
    assert said[:2] == ["ConnectionError", "ConnectionError"] and said[3] in {"403", "404"}
    ada.run("lab.attack('overwrite')", may_fail=True)
    ada.run("print(sh('python3 -m labapp reset --everything --yes'))")
    assert json.loads(other.run(look).strip()) == before
    assert room.engine.container(f"{room.name}--hub").status == "running"  # type: ignore[union-attr]
