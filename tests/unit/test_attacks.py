"""The attacks as far as they need no engine: journal, wheels, gate, targets, and the judgement."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import operator
import os
import re
import socket
import threading
import zipfile
from collections import Counter
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labapp import feedback
from labapp.attacks import attacks, delivery, middleman
from labapp.attacks.attacks import ATTACKS, SECRET, Happened, find_attack
from labapp.attacks.controls import gate, refusals
from labapp.attacks.delivery import (
    FAULTS,
    STEPS,
    Deployed,
    PipelineRun,
    Pushed,
    Saboteur,
    Step,
    run_pipeline,
    run_step,
)
from labapp.attacks.forging import (
    doctored,
    hashed_requirements,
    marker,
    startup_code,
    wheel_to_swap,
)
from labapp.attacks.journal import Change, Journal, own_path, own_tag
from labapp.attacks.judge import judge, last_delivery, note_delivery, prove
from labapp.errors import AttackError, DeploymentError, InvalidReference, StateError
from labapp.feedback import QuietFeedback
from labapp.registry.client import Registry
from labapp.registry.manifests import digest_of
from labapp.state import State

D, TOP, OTHER = ("sha256:" + letter * 64 for letter in "abc")


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    """As much of a bench as there is without an engine."""
    (tmp_path / "work").mkdir()
    registry = Registry("localhost:23456")
    return SimpleNamespace(
        state=State.open(tmp_path / "state"), registry=registry, work=tmp_path / "work"
    )


@pytest.fixture
def journal(bench: Any) -> Journal:
    return Journal(bench.state)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with feedback.using(QuietFeedback()) as told:
        yield told


def test_each_step_of_the_journey_has_one_attack() -> None:
    assert [attack.id for attack in ATTACKS] == (
        ["secret", "base", "dependency", "push", "rest", "transit", "moved", "run"]
    )
    assert len({attack.step for attack in ATTACKS}) == 8
    assert all(attack.title and attack.wrong and attack.control for attack in ATTACKS)
    assert find_attack("rest").step == "at rest"
    with pytest.raises(AttackError, match=r"'flood'.*secret, base, .*run"):
        find_attack("flood")


def test_the_announcement_says_how_to_undo() -> None:
    happened = Happened(find_attack("base"), "x", "The tag moved. " * 20, {"digest now": D})
    assert all(each in happened.box for each in ("base image", "lab.undo()", D))
    assert max(map(len, happened.box.splitlines())) < 100


class TestJournal:
    @pytest.mark.parametrize("before", [b"\0honest\xff", None])
    def test_a_changed_file_is_put_back(
        self, bench: Any, journal: Journal, tmp_path: Path, before: bytes | None
    ) -> None:
        file = tmp_path / "leak" / ".env"
        if before is not None:
            file.parent.mkdir()
            file.write_bytes(before)
            file.chmod(0o755)
        journal.change_file("secret", file, b"planted")
        assert file.read_bytes() == b"planted"
        assert [(each.kind, each.what) for each in journal.changes()] == [("file", str(file))]
        attacks.undo(bench)
        assert journal.changes() == []
        if before is None:
            assert not file.parent.exists()
        else:
            assert (file.read_bytes(), file.stat().st_mode & 0o777) == (before, 0o755)

    def test_what_the_learner_changed_since_is_left_alone(
        self, journal: Journal, tmp_path: Path
    ) -> None:
        file, new = tmp_path / "Dockerfile", tmp_path / "new" / "secret.env"
        file.write_text("FROM a")
        journal.change_file("base", file, b"FROM b")
        journal.change_file("secret", new, b"x")
        file.write_text("FROM c, my own")
        (tmp_path / "new" / "mine.txt").write_text("the learner's own")
        journal.restore_files()
        assert file.read_text() == "FROM c, my own"
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine.txt"]

    @pytest.mark.parametrize("way", ["undo", "reset"])
    def test_two_changes_of_one_thing_are_undone_the_last_first(
        self, bench: Any, journal: Journal, tmp_path: Path, way: str
    ) -> None:
        file = tmp_path / "f"
        file.write_text("first")
        journal.change_file("dependency", file, b"second")
        journal.change_file("dependency", file, b"third")
        if way == "undo":
            attacks.undo(bench)
        else:
            journal.restore_files()
        assert journal.changes() == []
        assert file.read_text() == "first"

    @pytest.mark.parametrize("dies_at", [1, 2])
    def test_the_entry_is_there_before_the_change(
        self, bench: Any, journal: Journal, monkeypatch: pytest.MonkeyPatch, dies_at: int
    ) -> None:
        file = bench.work / "f"
        file.write_text("honest")
        # The journal's own entry is moved into place in the same way as the file.
        real, moves = Path.replace, itertools.count(1)

        def die(path: Path, target: Path) -> Path:
            if next(moves) == dies_at:
                raise KeyboardInterrupt
            return real(path, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "replace", die)
            journal.change_file("dependency", file, b"planted")
        assert file.read_text() == "honest"
        assert len(journal.changes()) == dies_at - 1
        attacks.undo(bench)
        assert file.read_text() == "honest"
        assert journal.changes() == []

    @pytest.mark.parametrize("damage", ["", "{", "[]", '{"kind": "planet"}', '{"kind": "file"}'])
    def test_a_damaged_entry_takes_no_other_with_it(
        self, bench: Any, journal: Journal, tmp_path: Path, damage: str
    ) -> None:
        file = tmp_path / "f"
        file.write_text("honest")
        damaged = journal.note(Change("base", "container", "x"))
        journal.change_file("dependency", file, b"planted")
        bench.state.path("attacks", f"{damaged.number}.json").write_text(damage)
        assert [each.kind for each in journal.changes()] == ["file"]
        journal.restore_files()
        assert file.read_text() == "honest"

    def test_what_can_not_be_written_is_told_and_stays_noted(
        self, bench: Any, journal: Journal, tmp_path: Path
    ) -> None:
        with pytest.raises(StateError, match="work"):
            journal.change_file("dependency", bench.work, b"x")
        assert journal.changes() == []
        file, other = tmp_path / "f", tmp_path / "g"
        for each in (other, file):
            each.write_text("honest")
            journal.change_file("dependency", each, b"planted")
        file.unlink()
        file.mkdir()
        with pytest.raises(AttackError, match=str(file)):
            attacks.undo(bench)
        assert other.read_text() == "honest"
        assert [each.what for each in journal.changes()] == [str(file)]


def wheel(folder: Path, name: str = "small-1.0-py3-none-any.whl", package: str = "small") -> Path:
    """Write a wheel as small as one can be."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    info = "-".join(name.split("-")[:2]) + ".dist-info"
    content = {f"{package}/__init__.py": "ANSWER = 42\n", f"{info}/METADATA": "Name: small\n"}
    record = "".join(f"{file},,\n" for file in [*content, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**content, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return path


class TestWheels:
    def test_a_doctored_wheel_looks_the_same_and_says_what_it_is(self, tmp_path: Path) -> None:
        honest = wheel(tmp_path)
        content = doctored(honest, startup_code("dependency", "here"))
        assert content == doctored(honest, startup_code("dependency", "here"))
        archive = zipfile.ZipFile(io.BytesIO(content))
        assert archive.namelist() == zipfile.ZipFile(honest).namelist()
        code = archive.read("small/__init__.py")
        assert code.startswith(b"ANSWER = 42\n")
        assert marker("dependency").encode() in code
        compile(code, "small", "exec")
        record = archive.read("small-1.0.dist-info/RECORD").decode().splitlines()
        digest = base64.urlsafe_b64encode(hashlib.sha256(code).digest()).rstrip(b"=").decode()
        assert record[0] == f"small/__init__.py,sha256={digest},{len(code)}"
        assert record[1:] == ["small-1.0.dist-info/METADATA,,", "small-1.0.dist-info/RECORD,,"]

    @pytest.mark.parametrize("content", [None, b"no zip", b"PK\5\6" + bytes(18)])
    def test_what_is_no_wheel_is_told(self, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "x.whl"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(AttackError, match=r"x\.whl"):
            doctored(path, "")

    def test_the_wheel_to_swap_is_pure_python_and_asked_for(self, tmp_path: Path) -> None:
        folder, requirements = tmp_path / "wheels", tmp_path / "requirements.txt"
        wheel(folder, "aaa-1.0-py3-none-any.whl")
        wheel(folder, "fast_one-2.0-cp313-cp313-linux_x86_64.whl")
        wanted = wheel(folder, "Slow.One-2.0-py3-none-any.whl")
        requirements.write_text("# what we need\nfast-one==2.0\nslow_one == 2.0 ; python_version\n")
        assert wheel_to_swap(requirements, folder) == wanted
        for gone in (wanted, requirements):
            gone.unlink()
            with pytest.raises(AttackError, match=re.escape(str(requirements))):
                wheel_to_swap(requirements, folder)

    def test_requirements_get_the_digests_of_their_wheels(self, tmp_path: Path) -> None:
        folder = tmp_path / "wheels"
        one = wheel(folder, "small_one-1.0-py3-none-any.whl")
        other = wheel(folder, "small_one-1.0-cp313-cp313-linux_x86_64.whl", package="other")
        requirements = tmp_path / "requirements.txt"
        requirements.write_text("# comment\n\nSmall.One==1.0  # the only one\n")
        digests = sorted(digest_of(path.read_bytes()) for path in (one, other))
        assert hashed_requirements(requirements, folder) == (
            f"# comment\n\nSmall.One==1.0 \\\n    --hash={digests[0]} \\\n    --hash={digests[1]}\n"
        )

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("small\n", "line 1.*'small'"),
            ("# x\nsmall>=1.0\n", "line 2.*'small>=1.0'"),
            ("small==1.0 \\\n  --hash=sha256:0\n", "line 2"),
            ("small==1.1\n", "line 1.*small 1.1"),
            ("tall==1.0\n", "line 1.*tall 1.0"),
            (None, "requirements.txt"),
        ],
    )
    def test_what_can_not_be_hashed_is_told(
        self, tmp_path: Path, text: str | None, told: str
    ) -> None:
        wheel(tmp_path / "wheels")
        requirements = tmp_path / "requirements.txt"
        if text is not None:
            requirements.write_text(text)
        with pytest.raises(AttackError, match=told):
            hashed_requirements(requirements, tmp_path / "wheels")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2/", "/v2/"),
        ("/v2/shop/web/manifests/1.0", f"/v2/shop/web/manifests/{D}"),
        (f"/v2/shop/web/manifests/{TOP}", f"/v2/shop/web/manifests/{D}"),
        ("/v2/shop/web2/manifests/1.0", "/v2/shop/web2/manifests/1.0"),
        ("/v2/my/shop/web/manifests/1.0", "/v2/my/shop/web/manifests/1.0"),
        (f"/v2/shop/web/blobs/{D}", f"/v2/shop/web/blobs/{D}"),
    ],
)
def test_the_mirror_lies_about_one_repository_only(path: str, expected: str) -> None:
    assert middleman.asked_for(path, "shop/web", D) == expected
    assert middleman.asked_for(path, "", "") == path


def test_the_mirror_answers_a_tls_hello_in_http() -> None:
    # Engines with containerd's store fall back to HTTP on an answer in HTTP, and on nothing else.
    hello = bytes.fromhex("16030100c8010000c40303") + bytes(32) + b"\x00\x0a\x00\x08\x13\x01\x0a"
    with ThreadingHTTPServer(("127.0.0.1", 0), middleman.Middleman) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with socket.create_connection(server.server_address[:2], timeout=5) as connection:
            connection.sendall(hello)
            answer = b"".join(iter(lambda: connection.recv(1024), b""))
        server.shutdown()
    assert answer.startswith(b"HTTP/1.0 400 ")
    assert answer.endswith(b"\r\n\r\n")


class TestGate:
    def write(self, folder: Path, *images: str) -> Path:
        file = folder / "deployment.yaml"
        services = "".join(f"  s{number}:\n    image: {i!r}\n" for number, i in enumerate(images))
        file.write_text(f"services:\n{services}")
        return file

    @pytest.mark.parametrize(
        ("image", "fact"),
        [
            (f"localhost:1/shop/web@{D}", None),
            (f"localhost:1/shop/web:1.4@{D}", None),
            ("localhost:1/shop/web:1.4", "'1.4'"),
            ("localhost:1/shop/web", "'latest'"),
            ("python", "'latest'"),
            (f"localhost:1/shop/web@{D[:-1]}", "no reference"),
            ("localhost:1/shop/web@sha512:" + "a" * 64, "no reference"),
            (f"localhost:2/shop/web@{D}", "localhost:1/shop/*"),
            (f"localhost:1/other/web@{D}", "localhost:1/shop/*"),
            (f"shop/web@{D}", "localhost:1/shop/*"),
        ],
    )
    def test_what_is_refused(
        self, bench: Any, tmp_path: Path, quiet: QuietFeedback, image: str, fact: str | None
    ) -> None:
        file = self.write(tmp_path, f"localhost:1/shop/ok@{D}", image)
        rules: Any = {"allowed": ["localhost:1/shop/*"], "registry": bench.registry}
        found = refusals(file, **rules)
        assert gate(file, **rules) == (fact is None)
        assert [(each.service, each.line, each.image) for each in found] == (
            [] if fact is None else [("s1", 5, image)]
        )
        assert all(str(fact) in each.reason and str(each) in quiet.lines[-1] for each in found)

    @pytest.mark.parametrize("content", [None, "services: ["])
    def test_a_file_that_can_not_be_read_does_not_pass(
        self, bench: Any, tmp_path: Path, content: str | None
    ) -> None:
        file = tmp_path / "odd.yaml"
        if content is not None:
            file.write_text(content)
        with pytest.raises(DeploymentError, match=r"odd\.yaml"):
            gate(file, allowed=(), registry=bench.registry)


class TestTargets:
    @pytest.mark.parametrize("target", ["localhost:23456/shop/web:1", "127.0.0.1:23456/a:b"])
    def test_the_labs_own_tags_are(self, bench: Any, target: str) -> None:
        assert str(own_tag(bench, target)) == target

    @pytest.mark.parametrize(
        ("target", "fact"),
        [
            (None, "which image"),
            ("localhost:23456/Shop/web:1", "Shop"),
            ("shop/web:1", "'docker.io'"),
            ("localhost:23457/shop/web:1", "'localhost:23457'"),
            ("192.168.1.4:23456/shop/web:1", "'192.168.1.4:23456'"),
            ("registry.example:23456/shop/web:1", "'registry.example:23456'"),
            ("localhost:23456/base/python:3.13", "'base/"),
            ("localhost:23456/shop/web", "a tag"),
            (f"localhost:23456/shop/web@{D}", "a tag"),
            (f"localhost:23456/shop/web:1@{D}", "a tag"),
        ],
    )
    def test_anything_else_is_refused(self, bench: Any, target: str | None, fact: str) -> None:
        with pytest.raises((AttackError, InvalidReference), match=fact):
            attacks.start(bench, "push", target=target)
        assert Journal(bench.state).changes() == []

    @pytest.mark.parametrize("path", ["..", ".", "../work2", "/etc/passwd", "a/../../x", "link/x"])
    def test_paths_elsewhere_are_refused(self, bench: Any, tmp_path: Path, path: str) -> None:
        (tmp_path / "home").mkdir()
        (bench.work / "link").symlink_to(tmp_path / "home", target_is_directory=True)
        with pytest.raises(AttackError, match=str(bench.work.resolve())):
            own_path(bench, bench.work / path)
        assert own_path(bench, bench.work / "new" / "x") == (bench.work / "new" / "x").resolve()


class TestChoice:
    def test_the_same_seed_gives_the_same_faults(self) -> None:
        # The choice is what learners are judged by: it must not change with the lab's versions.
        assert [Saboteur(17, 0).choose(seed) for seed in (1, 2, 3)] == (
            [("secret", "dependency"), ("rest", "moved"), ("secret", "dependency", "transit")]
        )

    def test_each_fault_comes_up_and_neighbours_can_not_share_answers(self) -> None:
        drawn = [Saboteur(who, 0).choose(seed) for seed in range(50) for who in range(20)]
        assert set(map(len, drawn)) == {1, 2, 3}
        counts = Counter(fault for each in drawn for fault in each)
        assert min(counts[fault] for fault in FAULTS) > 200
        for other in (1, 20):  # the next learner with the same seed; the same one with the next
            assert sum(map(operator.eq, drawn, drawn[other:])) < 100

    def test_a_seed_of_ones_own_plants_one_fault_before_the_build_and_one_later(self) -> None:
        found = set()
        for number in range(8):
            saboteur = Saboteur(number, 7919 * number)
            own, practice = map(saboteur.choose, (saboteur.own_seed, saboteur.practice_seed))
            for faults in (own, practice):
                assert [FAULTS[fault] == "build" for fault in faults] == [True, False]
            assert not set(practice) & set(own)
            found.add((saboteur.own_seed, own))
        assert len({seed for seed, _ in found}) > 4
        assert len({own for _, own in found}) > 2

    @pytest.mark.parametrize("wrong", ["run", ["base"], 7.5, True])
    def test_faults_are_named_or_chosen_by_a_number(
        self, wrong: Any, bench: Any, tmp_path: Path
    ) -> None:
        # What there is not is told before anything runs.
        with pytest.raises(AttackError, match="secret, base"):
            prove(bench, tmp_path / "deliver.py", "base", wrong)
        with pytest.raises(AttackError, match=re.escape(repr(wrong))):
            Saboteur(1, 0).choose(wrong)


class TestScripts:
    def test_a_script_gets_its_step_folder_and_environment(self, tmp_path: Path) -> None:
        python, shell = tmp_path / "deliver.py", tmp_path / "deliver.sh"
        python.write_text("import os, sys\nos.execlp('sh', 'sh', 'deliver.sh', *sys.argv[1:])\n")
        shell.write_text('echo "$1 $PWD $LAB_APP"; echo to the other >&2; exit 3\n')
        for script in (python, shell):
            step = run_step(script, "pin", {**os.environ, "LAB_APP": "x"})
            assert (step.name, step.code) == ("pin", 3)
            assert step.output == f"pin {tmp_path} x\nto the other\n"

    @pytest.mark.parametrize(
        ("name", "fact"), [("gone.py",) * 2, ("deliver.rb",) * 2, ("../deliver.py", "../app")]
    )
    def test_what_can_not_be_run_is_told(self, bench: Any, name: str, fact: str) -> None:
        for file in ("deliver.rb", "../deliver.py"):
            (bench.work / file).write_text("")
        with pytest.raises(AttackError, match=re.escape(fact)):
            run_pipeline(bench, bench.work / name)

    def test_a_step_that_hangs_is_ended_with_what_it_started(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script = tmp_path / "deliver.sh"
        # What it started holds its output open for as long as it runs.
        script.write_text("echo begun\nsleep 60 &\nsleep 60\n")
        monkeypatch.setattr(delivery, "STEP_SECONDS", 0.6)
        step = run_step(script, "build", os.environ)
        assert step.code == 124
        assert step.output.startswith("begun\n")
        assert step.seconds < 30

    @pytest.mark.parametrize(
        ("output", "line"),
        [
            ("", ""),
            ("one\ntwo \n\n", "two"),
            ("Traceback (most recent call last):\n  File x\nNameError: a\n", "NameError: a"),
            ("no such tag\nTraceback (most recent call last):\n  x\n\n"
             "subprocess.CalledProcessError: Command '['docker']' returned 1\n", "no such tag"),
            ("Traceback (most recent call last):\nsubprocess.CalledProcessError: Command 'x'\n",
             "subprocess.CalledProcessError: Command 'x'"),
        ],
    )  # fmt: skip
    def test_the_last_line_of_a_step(self, output: str, line: str) -> None:
        steps = [Step("build", 0, "x", 1), Step("pin", 1, output, 1)]
        assert steps[1].last_line == line
        assert replace(run_of(), steps=steps).last_line == line
        assert run_of().last_line == ""


def planted(id: str, sign: str = "", **evidence: str) -> Happened:
    return Happened(find_attack(id), "x", "", evidence, sign)


SECRET_IN = planted("secret", SECRET, file="x")
PUSH = planted("push", TOP, now=D)
MOVED = planted("moved", OTHER, now=D)
REST = planted("rest", blob=TOP)


def run_of(
    *,
    codes: tuple[int, ...] = (0, 0, 0, 0, 0),
    pushed: bool = True,
    signs: bool = False,
    deployed: tuple[str, ...] | None = (D,),
    answers: bool = True,
    planted: tuple[Happened, ...] = (),
    planned: tuple[str, ...] = (),
    release: str = "r1",
    undone_at: str = "",
    pulled: str = "shop/delivered",
    fetched: str = TOP,
) -> PipelineRun:
    """Make up a run of a delivery: its image has the one layer D."""
    found = {release: D} | ({SECRET: D} if signs else {})
    log = (
        f'x "GET /v2/{pulled}/manifests/r1 HTTP/1.1" 200 -\nFORGED GET /v2/x answered with y\n'
        f'x "GET /v2/{pulled}/blobs/{fetched} HTTP/1.1" 200 -\n'
    )
    return PipelineRun(
        script=Path("deliver.py"),
        image="localhost:1/shop/delivered:r1",
        faults=planned or tuple(each.attack.id for each in planted),
        steps=[Step(n, c, "", 0.1) for n, c in zip(STEPS, codes, strict=False)],
        pushed=Pushed(D, (D,), found) if pushed else None,
        deployed=Deployed(deployed, answers, "") if deployed else None,
        undone_at=undone_at,
        mirror_log=log,
        planted=list(planted),
    )


LAST = (0, 0, 0, 0, 1)  # exit codes of a script that stops at its last step


@pytest.mark.parametrize(
    ("run", "ok", "fact"),
    [
        (run_of(), True, "answers"),
        (run_of(answers=False), False, "does not answer"),
        (run_of(deployed=None), False, "no container"),
        (run_of(deployed=(D, TOP)), False, "another image"),
        (run_of(pushed=False, deployed=None), False, "shop/delivered:r1"),
        (run_of(codes=(0, 1), pushed=False, deployed=None), False, "'inspect'"),
        (run_of(release="r0"), False, "'release.txt' that says 'r1'"),
        (run_of(pulled="base/python"), False, "mirror"),
        (run_of(undone_at="build"), False, "'build'"),
        (run_of(planted=(PUSH,), release="r0"), False, "'release.txt'"),
        (run_of(planted=(PUSH,), pulled="base/python"), False, "mirror"),
        (run_of(planted=(PUSH,), undone_at="pin"), False, "'pin'"),
        (run_of(planned=("push",), codes=(1,), undone_at="build"), False, "'build'"),
        (run_of(planted=(SECRET_IN,)), True, "all the same"),
        (run_of(planted=(SECRET_IN,), signs=True), False, "got through"),
        (run_of(planted=(SECRET_IN,), signs=True, deployed=None), False, "no container"),
        (run_of(planted=(SECRET_IN,), signs=True, codes=LAST, deployed=None), True, "'deploy'"),
        (run_of(planted=(PUSH,)), True, "all the same"),
        (run_of(planted=(PUSH,), deployed=(D, TOP)), False, "got through"),
        # A wrong image that runs is not excused by an exit code.
        (run_of(planted=(PUSH,), deployed=(D, TOP), codes=LAST), False, "got through"),
        (run_of(planted=(PUSH,), codes=LAST), True, "the right image"),
        (run_of(planted=(PUSH,), deployed=(OTHER,)), False, "another image"),
        (run_of(planted=(PUSH,), answers=False), False, "does not answer"),
        (run_of(planted=(REST,)), True, "all the same"),
        (run_of(planted=(REST,), deployed=None), False, "no container"),
        (run_of(planted=(REST,), deployed=None, codes=LAST), True, "'deploy'"),
        # Chosen, and never planted.
        (run_of(planned=("push",), codes=(1,), pushed=False, deployed=None), True, "'build'"),
        (run_of(planned=("push",), pushed=False, deployed=None), False, "shop/delivered:r1"),
    ],
)
def test_the_judgement(run: PipelineRun, ok: bool, fact: str) -> None:
    judgement = judge(run)
    assert judgement.ok is ok
    assert fact in judgement.happened
    assert [each.fault for each in judgement.faults] == list(run.faults)


def test_an_altered_blob_that_nobody_fetched_proves_nothing() -> None:
    # A builder may keep what the image was made of: the pull then asks for the manifest only.
    for deployed, survived in (((D,), None), (None, False)):
        [judged] = judge(run_of(planted=(REST,), fetched=D, deployed=deployed)).faults
        assert (judged.planted, judged.survived) == (True, survived)


@pytest.mark.parametrize(
    ("options", "survived"),
    [
        # What was pushed over the image stands on it, and has in it what the image had.
        ({"deployed": (D, TOP)}, [False, False, True, False]),
        ({"deployed": (TOP,)}, [True, False, True, False]),
        ({"deployed": None, "codes": (1,)}, [True, True, True, None]),
    ],
)
def test_each_fault_is_judged_by_itself(
    options: dict[str, Any], survived: list[bool | None]
) -> None:
    planned = ("secret", "push", "moved", "rest")
    run = run_of(planted=(SECRET_IN, PUSH, MOVED), planned=planned, signs=True, **options)
    judgement = judge(run)
    assert [each.survived for each in judgement.faults] == survived
    assert judgement.faults[0].evidence == {"file": "x", "layer": D}
    assert ("not tried" in judgement._repr_html_()) is (None in survived)


def test_logs_and_nothing_else_give_a_fault_away() -> None:
    log = f"ready\nBACKDOOR (harmless, {marker('secret')}): here"
    run = run_of(planted=(SECRET_IN,), signs=True)
    told = judge(replace(run, deployed=Deployed((D,), True, log))).faults[0].evidence
    assert told["log line"] == log.splitlines()[1]
    run = run_of(planted=(planted("transit", TOP, digest=D),), deployed=(D, TOP))
    assert judge(run).faults[0].evidence["log line"] == "FORGED GET /v2/x answered with y"
    assert "<td>deploy</td>" in run._repr_html_()
    hidden = judge(run, tell=False)
    assert not hidden.ok
    for shown in (run._repr_html_(), repr(run), hidden._repr_html_(), repr(hidden)):
        assert "transit" not in shown


def test_the_last_delivery_with_a_seed_is_kept(bench: Any) -> None:
    assert last_delivery(bench) is None
    run = run_of(planted=(SECRET_IN, PUSH), planned=("secret", "push", "moved"), signs=True)
    note_delivery(bench, run)
    assert last_delivery(bench) is None, "without a seed, there is nothing to find"
    note_delivery(bench, replace(run, seed=7))
    kept = last_delivery(bench)
    assert kept is not None
    assert (kept.seed, kept.release, kept.image) == (7, "r1", f"localhost:1/shop/delivered@{D}")
    assert kept.planted == {"secret": {"file": "x", "layer": D}, "push": {"now": D}}
    assert list(kept.left_out) == ["moved"]
    for damaged in ('{"seed": "x"}', "{", "[]", '{"seed": 1, "planted": []}'):
        bench.state.path("delivery.json").write_text(damaged)
        assert last_delivery(bench) is None
