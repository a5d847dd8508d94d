"""The attacks as far as they need no engine: journal, wheels, gate, targets, and the judgement."""

from __future__ import annotations

import itertools
import operator
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labapp import reset
from labapp.attacks import attacks, delivery, forging
from labapp.attacks.attacks import ATTACKS, SECRET, Happened, gate, refusals
from labapp.attacks.delivery import FAULTS, Deployed, PipelineRun, Pushed, Saboteur, Step, judge
from labapp.attacks.forging import marker
from labapp.attacks.journal import Change, Journal, own_path, own_tag, undo
from labapp.errors import AttackError
from labapp.feedback import QuietFeedback
from labapp.machine.ports import wait_until
from labapp.registry.client import Registry
from labapp.registry.manifests import digest_of
from labapp.state import State

pytestmark = pytest.mark.usefixtures("told")

D, TOP, OTHER = ("sha256:" + letter * 64 for letter in "abc")


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    """As much of a bench as there is without an engine."""
    state, work, registry = State.open(tmp_path / "state"), tmp_path / "work", "localhost:23456"
    work.mkdir()
    return SimpleNamespace(state=state, registry=Registry(registry), work=work)


@pytest.fixture
def journal(bench: Any) -> Journal:
    return Journal(bench.state)


def test_an_attack_says_what_it_did(bench: Any) -> None:
    assert " ".join(ATTACKS) == "secret base dependency push rest transit moved run"
    with pytest.raises(AttackError, match=r"'flood'.*secret, base, .*run"):
        attacks.start(bench, "flood")
    box = Happened(ATTACKS["base"], "The tag moved. " * 20, {"digest now": D}).box
    assert all(each in box for each in ("base image", "lab.undo()", D))
    assert max(map(len, box.splitlines())) < 100


class TestJournal:
    @pytest.mark.parametrize("before", [b"\0honest\xff", None])
    @pytest.mark.parametrize("way", ["undo", "reset"])
    def test_a_changed_file_is_put_back(
        self, bench: Any, journal: Journal, before: bytes | None, way: str
    ) -> None:
        file = bench.work / "leak" / ".env"
        if before is not None:
            file.parent.mkdir()
            file.write_bytes(before)
            file.chmod(0o755)
        for content in (b"planted", b"planted twice"):
            journal.change_file("secret", file, content)
            assert file.read_bytes() == content
        assert [(each.kind, each.what) for each in journal.changes()] == [("file", str(file))] * 2
        if way == "undo":
            undo(bench)
        else:
            engine: Any = object()  # nothing of this lab is on it
            assert reset.carry_out(reset.Plan(bench.state, engine, (), ())) == []
        assert journal.changes() == []
        if before is None:
            assert not file.parent.exists()
        else:
            assert (file.read_bytes(), file.stat().st_mode & 0o777) == (before, 0o755)

    def test_what_the_learner_changed_since_is_left_alone(
        self, journal: Journal, tmp_path: Path
    ) -> None:
        file, new, gone = tmp_path / "Dockerfile", tmp_path / "new" / ".env", tmp_path / "x" / "y"
        file.write_text("FROM a")
        for each in (file, new, gone):
            journal.change_file("base", each, b"planted")
        file.write_text("FROM c, my own")
        (tmp_path / "new" / "mine.txt").write_text("the learner's own")
        shutil.rmtree(gone.parent)
        journal.restore_files()
        assert journal.changes() == []
        assert file.read_text() == "FROM c, my own"
        assert [path.name for path in new.parent.iterdir()] == ["mine.txt"]
        assert not gone.parent.exists()

    @pytest.mark.parametrize("dies_at", [1, 2])
    def test_the_entry_is_there_before_the_change(
        self, bench: Any, journal: Journal, monkeypatch: pytest.MonkeyPatch, dies_at: int
    ) -> None:
        file = bench.work / "f"
        file.write_text("honest")
        # The journal's own entry is moved into place in the same way as the file.
        bench.state.seal("first", {})  # the seal itself is made once
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
        undo(bench)
        assert file.read_text() == "honest"
        assert journal.changes() == []

    def test_what_can_not_be_put_back_is_told_and_stays_noted(
        self, bench: Any, journal: Journal, tmp_path: Path
    ) -> None:
        file, other = tmp_path / "f", tmp_path / "g"
        for each in (other, file):
            each.write_text("honest")
            journal.change_file("dependency", each, b"planted")
        file.unlink()
        file.mkdir()
        tag = "localhost:23456/shop/web:1"
        journal.note(Change("push", "tag", tag, {"before": D, "after": TOP}))
        with pytest.raises(AttackError, match=f"'{tag}'(.|\n)*'{file}'"):
            undo(bench)
        assert other.read_text() == "honest"
        assert [each.what for each in journal.changes()] == [str(file), tag]


def test_requirements_get_the_digests_of_their_wheels(tmp_path: Path) -> None:
    wheels, requirements = tmp_path / "wheels", tmp_path / "requirements.txt"
    wheels.mkdir()
    for tag in (b"py3-none-any", b"cp313-cp313-linux_x86_64"):
        (wheels / f"small_one-1.0-{tag.decode()}.whl").write_bytes(tag)
    digests = sorted(map(digest_of, (b"py3-none-any", b"cp313-cp313-linux_x86_64")))
    # The second is as Notepad writes it.
    for mark, end in (("", "\n"), ("\ufeff", "\r\n")):
        text = f"{mark}# comment\n\nSmall.One==1.0  # the only one\n"
        requirements.write_text(text, encoding="utf-8", newline=end)
        assert forging.hashed_requirements(requirements, wheels) == (
            f"# comment\n\nSmall.One==1.0 \\\n    --hash={digests[0]} \\\n    --hash={digests[1]}\n"
        )
    for text, fact in [
        ("# x\nsmall>=1.0\n", "line 2.*'small>=1.0'"),
        ("small==1.0 --hash=sha256:0\n", "line 1.*--hash=sha256:0.*digest"),
        ("small_one==1.1\n", "line 1.*'small_one==1.1'"),
    ]:
        requirements.write_text(text)
        with pytest.raises(AttackError, match=fact):
            forging.hashed_requirements(requirements, wheels)


def test_what_the_gate_refuses(tmp_path: Path, told: QuietFeedback) -> None:
    file, allowed = tmp_path / "deployment.yaml", ["localhost:1/shop/*"]
    for image, fact in [
        (f"localhost:1/shop/web@{D}", None),
        ("localhost:1/shop/web:1.4", "'1.4'"),
        ("python", "'latest'"),
        (f"localhost:2/shop/web@{D}", *allowed),
        (f"localhost:1/other/web@{D}", *allowed),
        (f"shop/web@{D}", *allowed),
    ]:
        file.write_text(f"services:\n  a:\n    image: {image}\n")
        assert gate(file, allowed=allowed) == (fact is None), image
        found = refusals(file, allowed=allowed)
        assert len(found) == (fact is not None)
        for each in found:
            assert all(part in each for part in ("line 3", "'a'", repr(image), str(fact)))
            assert each in told.lines[-1]


def test_a_tag_that_is_not_the_labs_own_is_refused(bench: Any) -> None:
    own = "localhost:23456"
    for target in (f"{own}/shop/web:1", "127.0.0.1:23456/a:b"):
        assert str(own_tag(bench, target)) == target
    no_tags = (f"{own}/shop/web", f"{own}/shop/web:1@{D}")
    for refused in (None, "shop/web:1", "localhost:1/a:1", f"{own}/base/python:3.13", *no_tags):
        with pytest.raises(AttackError, match=repr(refused)):
            attacks.start(bench, "push", target=refused)


def test_a_path_elsewhere_is_refused(bench: Any, tmp_path: Path) -> None:
    (bench.work / "link").symlink_to(tmp_path, target_is_directory=True)
    for path in ("..", ".", "../work2", "/etc/passwd", "a/../../x", "link/x"):
        with pytest.raises(AttackError, match=str(bench.work.resolve())):
            own_path(bench, bench.work / path)
    assert own_path(bench, bench.work / "new" / "x") == (bench.work / "new" / "x").resolve()


class TestChoice:
    def test_each_fault_comes_up_and_neighbours_can_not_share_answers(self) -> None:
        # The choice is what learners are judged by: it must not change with the lab's versions.
        assert [Saboteur(17, 0).choose(seed) for seed in (1, 2, 3)] == (
            [("secret", "dependency"), ("rest", "moved"), ("secret", "dependency", "transit")]
        )
        drawn = [Saboteur(who, 0).choose(seed) for seed in range(50) for who in range(20)]
        assert set(map(len, drawn)) == {1, 2, 3}
        counts = Counter(fault for each in drawn for fault in each)
        assert min(counts[fault] for fault in FAULTS) > 200
        for other in (1, 20):  # the next learner with the same seed; the same one with the next
            assert sum(map(operator.eq, drawn, drawn[other:])) < 100

    def test_a_seed_of_ones_own_plants_one_fault_before_the_build_and_one_later(self) -> None:
        seeds, choices = set(), set()
        for number in range(8):
            saboteur = Saboteur(number, 7919 * number)
            own, practice = map(saboteur.choose, (saboteur.own_seed, saboteur.practice_seed))
            for faults in (own, practice):
                assert [FAULTS[fault] == "build" for fault in faults] == [True, False]
            assert not set(practice) & set(own)
            seeds.add(saboteur.own_seed)
            choices.add(own)
        assert (len(seeds) > 4, len(choices) > 2) == (True, True)

    def test_a_fault_that_there_is_not_is_told_before_anything_runs(self, bench: Any) -> None:
        with pytest.raises(AttackError, match=r"'run'.*secret, base"):
            delivery.prove(bench, bench.work / "deliver.py", "base", "run")


class TestScripts:
    def test_what_can_not_be_run_is_told(self, bench: Any) -> None:
        for file in ("deliver.rb", "deliver.py", "../deliver.py"):
            (bench.work / file).write_text("")
        for file, fact in [
            ("gone.py", "gone.py"),
            ("deliver.rb", "deliver.rb"),
            ("../deliver.py", "../app"),
            ("deliver.py", "work/app"),
        ]:
            with pytest.raises(AttackError, match=re.escape(fact)):
                delivery.run_pipeline(bench, bench.work / file)

    def test_a_step_that_is_interrupted_ends_with_what_it_started(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script, begun = tmp_path / "deliver.sh", tmp_path / "begun"
        script.write_text("(touch begun; sleep 0.2; touch late) &\nsleep 60\n")

        def interrupt(process: object) -> None:
            assert wait_until(begun.exists, seconds=10, every=0.01)
            raise KeyboardInterrupt

        monkeypatch.setattr(subprocess.Popen, "communicate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            delivery.run_step(script, "build", os.environ)
        assert not wait_until((tmp_path / "late").exists, seconds=0.4)


def planted(id: str, sign: str = "", **evidence: str) -> Happened:
    return Happened(ATTACKS[id], "", evidence, sign)


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
    log = (
        f'x "GET /v2/{pulled}/manifests/r1 HTTP/1.1" 200 -\nFORGED GET /v2/x answered with y\n'
        f'x "GET /v2/{pulled}/blobs/{fetched} HTTP/1.1" 200 -\n'
    )
    run = PipelineRun(
        image="localhost:1/shop/delivered:r1",
        steps=[Step(n, c, "", 0.1) for n, c in zip(delivery.STEPS, codes, strict=False)],
        pushed=Pushed(D, (D,), D if release == "r1" else "") if pushed else Pushed(),
        deployed=Deployed(deployed, answers, "") if deployed else None,
        undone_at=undone_at,
        mirror_log=log,
    )
    key = delivery.key_of(run)
    key.faults = planned or tuple(each.attack.id for each in planted)
    key.planted, key.signs = list(planted), {SECRET: D} if signs else {}
    return run


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
        (run_of(planned=("push",), codes=(1,), undone_at="build"), False, "'build'"),
        (run_of(planted=(SECRET_IN,)), True, "all the same"),
        (run_of(planted=(SECRET_IN,), signs=True), False, "got through"),
        (run_of(planted=(PUSH,), deployed=(D, TOP)), False, "got through"),
        # A wrong image that runs is not excused by an exit code.
        (run_of(planted=(PUSH,), deployed=(D, TOP), codes=LAST), False, "got through"),
        (run_of(planted=(PUSH,), codes=LAST), True, "the right image"),
        (run_of(planted=(REST,)), True, "all the same"),
        # A builder may keep what the image was made of: the pull then asks for the manifest only.
        (run_of(planted=(REST,), fetched=D), True, "nobody fetched"),
        (run_of(planted=(REST,), fetched=D, deployed=None), False, "no container"),
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
    assert [each.fault for each in judgement.faults] == list(delivery.key_of(run).faults)


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
    shown = judgement._repr_html_()
    assert "file: x<br>layer: sha256:" in shown
    assert ("not tried" in shown) is (None in survived)


def test_logs_and_nothing_else_give_a_fault_away() -> None:
    log = f"ready\nBACKDOOR (harmless, {marker('secret')}): here"
    run = run_of(planted=(SECRET_IN,), signs=True)
    run.deployed = Deployed((D,), True, log)
    told = judge(run).faults[0].evidence
    assert told["log line"] == log.splitlines()[1]
    run = run_of(planted=(planted("transit", TOP, digest=D),), deployed=(D, TOP))
    assert judge(run).faults[0].evidence["log line"] == "FORGED GET /v2/x answered with y"
    assert "<td>deploy</td>" in run._repr_html_()
    hidden = judge(run, tell=False)
    assert not hidden.ok
    for shown in (run._repr_html_(), repr(run), hidden._repr_html_(), repr(hidden)):
        assert "transit" not in shown


def test_the_last_delivery_with_a_seed_is_kept(bench: Any) -> None:
    run = run_of(planted=(SECRET_IN, PUSH), planned=("secret", "push", "moved"), signs=True)
    run.seed = 7
    delivery.note_delivery(bench, run)
    run.seed = None
    delivery.note_delivery(bench, run)
    planted = {"secret": {"file": "x", "layer": D}, "push": {"now": D}, "moved": {}}
    image = f"localhost:1/shop/delivered@{D}"
    assert delivery.last_delivery(bench) == delivery.Delivery(7, "r1", image, planted)
    # Neither what a notebook holds nor a file gives the answer away.
    shown = [repr(getattr(run, name)) for name in dir(run) if name[:1] != "_"]
    shown += [file.read_text("utf-8") for file in bench.state.folder.rglob("*") if file.is_file()]
    assert not [text for text in shown if any(fault in text for fault in ("secret", "moved"))]
