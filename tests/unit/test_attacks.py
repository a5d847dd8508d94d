"""The attacks as far as they need no engine: journal, wheels, gate, targets, and what they say."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import time
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from labapp.attacks import (
    ATTACKS,
    Happened,
    deliveries,
    find_attack,
    gate,
    hashed_requirements,
    refusals,
)
from labapp.attacks.forging import marker, startup_code
from labapp.attacks.journal import Change, Journal, restore_file
from labapp.attacks.judging import judge, prove
from labapp.attacks.middleman import asked_for
from labapp.attacks.outcome import Deployed, Pushed
from labapp.attacks.pipeline import PipelineRun
from labapp.attacks.saboteur import (
    FAULTS,
    Planted,
    chosen,
    named,
    own_seed,
    practice_seed,
    sabotage,
)
from labapp.attacks.scripts import STEPS, Step, run_step
from labapp.attacks.targets import own_path, own_tag
from labapp.attacks.wheels import doctored, wheel_to_swap
from labapp.errors import AttackError, DeploymentError, InvalidReference, StateError
from labapp.feedback import QuietFeedback
from labapp.manifests import digest_of
from labapp.registry import Registry
from labapp.state import State

D = "sha256:" + "a" * 64
TOP = "sha256:" + "b" * 64
SIGN = marker("secret")
CHOICES = [("secret", "dependency"), ("rest", "moved"), ("secret", "dependency", "transit")]


@pytest.fixture
def own(tmp_path: Path) -> State:
    return State.open(tmp_path / "state")


@pytest.fixture
def journal(own: State) -> Journal:
    return Journal(own)


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


def test_each_step_of_the_journey_has_one_attack() -> None:
    assert [attack.id for attack in ATTACKS] == (
        ["secret", "base", "dependency", "push", "rest", "transit", "moved", "run"]
    )
    assert len({attack.step for attack in ATTACKS}) == 8
    assert all(attack.wrong and attack.control for attack in ATTACKS)
    assert find_attack("rest").step == "at rest"
    with pytest.raises(AttackError, match=r"the attack 'flood'.*There are: secret, base, .*run"):
        find_attack("flood")


def test_the_announcement_is_loud_and_says_how_to_undo() -> None:
    happened = Happened(find_attack("base"), "x", "The tag moved. " * 20, {"digest now": D})
    lines = happened.box.splitlines()
    assert "ATTACK · base image" in lines[1]
    assert lines[-2] == "║ Undo: lab.undo()"
    assert any(D in line for line in lines)
    assert max(map(len, lines)) < 100
    refused = Happened(find_attack("push"), "x", "Somebody tried.", refused="no right to push")
    assert "ATTACK REFUSED · push" in refused.box
    assert "no right to push" in refused.box
    assert "undo" not in refused.box.lower()


class TestJournal:
    def test_a_changed_file_is_put_back(self, journal: Journal, tmp_path: Path) -> None:
        file = tmp_path / "wheel.whl"
        file.write_bytes(b"\0honest\xff")
        change = journal.change_file("dependency", file, b"planted")
        assert file.read_bytes() == b"planted"
        assert [str(each) for each in journal.changes()] == [f"file '{file}'"]
        assert "as it was" in restore_file(change)
        assert file.read_bytes() == b"\0honest\xff"
        journal.drop(change)
        assert journal.changes() == []

    def test_a_new_file_goes_with_its_folders(self, journal: Journal, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        file = tmp_path / "kept" / "new" / "deep" / "secret.env"
        journal.change_file("secret", file, b"x")
        assert journal.restore_files() == [f"removed '{file}'"]
        assert (tmp_path / "kept").is_dir()
        assert not (tmp_path / "kept" / "new").exists()

    def test_a_folder_that_holds_more_by_now_stays(self, journal: Journal, tmp_path: Path) -> None:
        file = tmp_path / "new" / "secret.env"
        journal.change_file("secret", file, b"x")
        (tmp_path / "new" / "mine.txt").write_text("the learner's own")
        journal.restore_files()
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine.txt"]

    def test_what_the_learner_changed_since_is_left_alone(
        self, journal: Journal, tmp_path: Path
    ) -> None:
        file = tmp_path / "Dockerfile"
        file.write_text("FROM a")
        journal.change_file("base", file, b"FROM b")
        file.write_text("FROM c, my own")
        assert "left" in journal.restore_files()[0]
        assert file.read_text() == "FROM c, my own"

    def test_two_changes_of_one_file_are_undone_in_turn(
        self, journal: Journal, tmp_path: Path
    ) -> None:
        file = tmp_path / "f"
        file.write_text("first")
        journal.change_file("dependency", file, b"second")
        journal.change_file("dependency", file, b"third")
        assert len(journal.restore_files()) == 2
        assert file.read_text() == "first"

    def test_the_entry_is_there_before_the_change(
        self, own: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "f"
        file.write_text("honest")

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            Journal(own).change_file("dependency", file, b"planted")
        # The journal's own entry is moved into place in the same way: nothing was changed yet.
        monkeypatch.undo()
        assert file.read_text() == "honest"

        real, moved = Path.replace, []

        def die_at_the_second(path: Path, target: Path) -> Path:
            moved.append(target)
            if len(moved) == 2:
                raise KeyboardInterrupt
            return real(path, target)

        monkeypatch.setattr(Path, "replace", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            Journal(own).change_file("dependency", file, b"planted")
        monkeypatch.undo()
        assert len(Journal(own).changes()) == 1
        Journal(own).restore_files()
        assert file.read_text() == "honest"
        assert Journal(own).changes() == []

    @pytest.mark.parametrize("damage", ["", "{", "[]", '{"kind": "planet"}', '{"kind": "file"}'])
    def test_a_damaged_entry_takes_no_other_with_it(
        self, own: State, journal: Journal, tmp_path: Path, damage: str
    ) -> None:
        file = tmp_path / "f"
        file.write_text("honest")
        damaged = journal.note(Change("base", "container", "x"))
        journal.change_file("dependency", file, b"planted")
        own.path("attacks", f"{damaged.number}.json").write_text(damage)
        assert [each.kind for each in journal.changes()] == ["file"]
        journal.restore_files()
        assert file.read_text() == "honest"

    def test_what_can_not_be_written_is_told(self, journal: Journal, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(StateError, match=r"writing '.*folder'.*try again"):
            journal.change_file("dependency", tmp_path / "folder", b"x")

    def test_a_restore_that_fails_says_what_to_do(self, journal: Journal, tmp_path: Path) -> None:
        file = tmp_path / "f"
        file.write_text("honest")
        change = journal.change_file("dependency", file, b"planted")
        file.unlink()
        file.mkdir()
        with pytest.raises(AttackError, match=r"putting '.*f' back: .*undo again"):
            restore_file(change)


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
        rows = {
            row[0]: row
            for row in csv.reader(io.TextIOWrapper(archive.open("small-1.0.dist-info/RECORD")))
        }
        digest = base64.urlsafe_b64encode(hashlib.sha256(code).digest()).rstrip(b"=").decode()
        assert rows["small/__init__.py"] == (
            ["small/__init__.py", f"sha256={digest}", str(len(code))]
        )

    @pytest.mark.parametrize("content", [b"", b"no zip", None])
    def test_what_is_no_wheel_is_told(self, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "x.whl"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(AttackError, match=r"swapping the wheel '.*x.whl'.*fresh=True"):
            doctored(path, "")

    def test_a_wheel_without_a_package_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / "x.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x-1.dist-info/RECORD", "")
        with pytest.raises(AttackError, match="no package"):
            doctored(path, "")

    def test_the_wheel_to_swap_is_pure_python_and_asked_for(self, tmp_path: Path) -> None:
        folder = tmp_path / "wheels"
        wheel(folder, "aaa-1.0-py3-none-any.whl")
        wheel(folder, "fast_one-2.0-cp313-cp313-linux_x86_64.whl")
        wanted = wheel(folder, "Slow.One-2.0-py3-none-any.whl")
        requirements = tmp_path / "requirements.txt"
        requirements.write_text("# what we need\nfast-one==2.0\nslow_one == 2.0 ; python_version\n")
        assert wheel_to_swap(requirements, folder) == wanted
        wanted.unlink()
        with pytest.raises(AttackError, match="has none that"):
            wheel_to_swap(requirements, folder)
        requirements.unlink()
        with pytest.raises(AttackError, match="Take a copy"):
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
            ("small\n", r"line 1: 'small' does not pin one version"),
            ("# x\nsmall>=1.0\n", r"line 2: 'small>=1.0' does not pin"),
            ("small==1.0 \\\n  --hash=sha256:0\n", r"line 2: there are digests already. Keep them"),
            ("small==1.1\n", r"line 1: .*has no wheel of small 1.1"),
            ("tall==1.0\n", r"line 1: .*has no wheel of tall 1.0"),
        ],
    )
    def test_what_can_not_be_hashed_is_told(self, tmp_path: Path, text: str, told: str) -> None:
        wheel(tmp_path / "wheels")
        requirements = tmp_path / "requirements.txt"
        requirements.write_text(text)
        with pytest.raises(AttackError, match=told):
            hashed_requirements(requirements, tmp_path / "wheels")

    def test_a_missing_file_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(AttackError, match=r"hashing the requirements in '.*gone.txt'"):
            hashed_requirements(tmp_path / "gone.txt", tmp_path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2/", "/v2/"),
        ("/v2/shop/web/manifests/1.0", f"/v2/shop/web/manifests/{D}"),
        ("/v2/shop/web/manifests/sha256:" + "b" * 64, f"/v2/shop/web/manifests/{D}"),
        (f"/v2/shop/web/manifests/{D}", f"/v2/shop/web/manifests/{D}"),
        ("/v2/shop/web2/manifests/1.0", "/v2/shop/web2/manifests/1.0"),
        ("/v2/my/shop/web/manifests/1.0", "/v2/my/shop/web/manifests/1.0"),
        (f"/v2/shop/web/blobs/{D}", f"/v2/shop/web/blobs/{D}"),
    ],
)
def test_the_mirror_lies_about_one_repository_only(path: str, expected: str) -> None:
    assert asked_for(path, "shop/web", D) == expected
    assert asked_for(path, "", "") == path


class TestGate:
    def write(self, folder: Path, *images: str) -> Path:
        file = folder / "deployment.yaml"
        services = "".join(f"  s{number}:\n    image: {i!r}\n" for number, i in enumerate(images))
        file.write_text(f"services:\n{services}")
        return file

    @pytest.mark.parametrize(
        ("image", "reason"),
        [
            (f"localhost:1/shop/web@{D}", ""),
            (f"localhost:1/shop/web:1.4@{D}", ""),
            ("localhost:1/shop/web:1.4", "not pinned: it names the tag '1.4'"),
            ("localhost:1/shop/web", "not pinned: it names no tag, so 'latest'"),
            ("python", "not pinned: it names no tag, so 'latest'"),
            (f"localhost:1/shop/web@{D[:-1]}", "it is no reference"),
            ("localhost:1/shop/web@sha512:" + "a" * 64, "it is no reference"),
            (f"localhost:2/shop/web@{D}", "not allowed: only localhost:1/shop"),
            (f"localhost:1/other/web@{D}", "not allowed: only localhost:1/shop"),
            (f"shop/web@{D}", "not allowed"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, image: str, reason: str) -> None:
        file = self.write(tmp_path, image)
        found = refusals(file, allowed=["localhost:1/shop/*"])
        assert [each.reason[: len(reason)] for each in found] == ([reason] if reason else [])

    def test_each_service_is_listed_with_its_line(self, tmp_path: Path) -> None:
        file = self.write(tmp_path, "a/b:1", f"a/b@{D}", "a/c")
        with pytest.raises(DeploymentError) as told:
            gate(file)
        assert "line 3, service 's0', image 'a/b:1': not pinned" in str(told.value)
        assert "line 7, service 's2', image 'a/c': not pinned" in str(told.value)
        assert "s1" not in str(told.value)
        gate(self.write(tmp_path, f"a/b@{D}"))

    def test_a_file_that_can_not_be_read_does_not_pass(self, tmp_path: Path) -> None:
        with pytest.raises(DeploymentError, match="reading the deployment file"):
            gate(tmp_path / "gone.yaml")
        (tmp_path / "bad.yaml").write_text("services: [")
        with pytest.raises(DeploymentError, match="line"):
            gate(tmp_path / "bad.yaml")


class TestTargets:
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Any:
        (tmp_path / "work").mkdir()
        return SimpleNamespace(registry=Registry("localhost:23456"), work=tmp_path / "work")

    @pytest.mark.parametrize("target", ["localhost:23456/shop/web:1", "127.0.0.1:23456/a:b"])
    def test_the_labs_own_tags_are(self, bench: Any, target: str) -> None:
        assert str(own_tag(bench, target)) == target

    @pytest.mark.parametrize(
        ("target", "told"),
        [
            ("shop/web:1", r"in the registry 'docker.io'.*own one only"),
            ("docker.io/library/python:3.13", "own one only"),
            ("localhost:23457/shop/web:1", "own one only"),
            ("192.168.1.4:23456/shop/web:1", "own one only"),
            ("registry.example:23456/shop/web:1", "own one only"),
            ("localhost:23456/base/python:3.13", r"all chapters build on.*team/base:1"),
            ("localhost:23456/shop/web", "moves or watches a tag"),
            (f"localhost:23456/shop/web@{D}", "moves or watches a tag"),
            (f"localhost:23456/shop/web:1@{D}", "moves or watches a tag"),
        ],
    )
    def test_anything_else_is_refused(self, bench: Any, target: str, told: str) -> None:
        with pytest.raises(AttackError, match=told):
            own_tag(bench, target)

    def test_what_is_no_reference_is_told(self, bench: Any) -> None:
        with pytest.raises(InvalidReference):
            own_tag(bench, "localhost:23456/Shop/web:1")

    @pytest.mark.parametrize("path", ["..", ".", "../work2", "/etc/passwd", "a/../../x"])
    def test_paths_elsewhere_are_refused(self, bench: Any, path: str) -> None:
        with pytest.raises(AttackError, match=r"not in this chapter's folder"):
            own_path(bench, bench.work / path)

    def test_a_link_out_of_the_folder_is_refused(self, bench: Any, tmp_path: Path) -> None:
        (tmp_path / "home").mkdir()
        (bench.work / "app").symlink_to(tmp_path / "home", target_is_directory=True)
        with pytest.raises(AttackError, match=r"not in this chapter's folder"):
            own_path(bench, bench.work / "app" / "wheels")
        assert own_path(bench, bench.work / "new" / "x") == (bench.work / "new" / "x").resolve()


class TestChoice:
    def test_the_same_seed_gives_the_same_faults(self) -> None:
        assert chosen(4, 17) == chosen(4, 17)
        # The choice is what learners are judged by: it must not change with the lab's versions.
        assert [chosen(seed, 17) for seed in (1, 2, 3)] == CHOICES

    def test_each_number_of_faults_and_each_fault_comes_up(self) -> None:
        drawn = [chosen(seed, learner) for seed in range(50) for learner in range(20)]
        counts = Counter(map(len, drawn))
        assert set(counts) == {1, 2, 3}
        assert min(counts.values()) > 250
        faults = Counter(fault for each in drawn for fault in each)
        assert set(faults) == set(FAULTS)
        assert min(faults.values()) > 200
        assert all(each == tuple(f for f in FAULTS if f in each) for each in drawn)

    def test_neighbours_can_not_share_answers(self) -> None:
        same = sum(chosen(1, learner) == chosen(1, learner + 1) for learner in range(400))
        assert same < 40
        same = sum(chosen(seed, 1) == chosen(seed + 1, 1) for seed in range(400))
        assert same < 40

    def test_faults_can_be_named(self) -> None:
        assert named(("moved", "base")).faults == ("base", "moved")
        assert named(()).faults == ()
        with pytest.raises(AttackError, match=r"the fault 'run': there is none.*There are: secret"):
            named(("run",))


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class TestScripts:
    def test_a_script_gets_its_step_folder_and_environment(self, tmp_path: Path) -> None:
        script = tmp_path / "deliver.py"
        script.write_text(
            "import os, sys\nprint(sys.argv[1:], os.getcwd(), os.environ['LAB_APP'])\n"
            "print('to the other', file=sys.stderr)\nsys.exit(3)\n"
        )
        step = run_step(script, "pin", {**os.environ, "LAB_APP": "x", "PYTHONIOENCODING": "utf-8"})
        assert (step.name, step.code) == ("pin", 3)
        assert f"['pin'] {tmp_path} x" in step.output
        assert "to the other" in step.output

    def test_a_shell_script_runs_too(self, tmp_path: Path) -> None:
        script = tmp_path / "deliver.sh"
        script.write_text('echo "$1"; exit 4\n')
        step = run_step(script, "push", os.environ)
        assert (step.output, step.code) == ("push\n", 4)

    def test_a_step_that_hangs_is_ended_with_what_it_started(self, tmp_path: Path) -> None:
        script = tmp_path / "deliver.py"
        script.write_text(
            "import subprocess, sys, time\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            "print(child.pid, flush=True)\ntime.sleep(60)\n"
        )
        step = run_step(script, "build", os.environ, seconds=0.6)
        assert step.code == 124
        assert "more than 1 s" in step.output
        child = int(step.output.split()[0])
        for _ in range(100):
            # It was killed; who inherits it may take a moment to notice.
            if not runs(child):
                break
            time.sleep(0.05)
        assert not runs(child)

    def test_without_a_shell_python_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "deliver.sh").write_text("")
        monkeypatch.setattr("shutil.which", lambda _: None)
        with pytest.raises(AttackError, match=r"has no 'sh'.*deliver\.py"):
            run_step(tmp_path / "deliver.sh", "build", {})


def run_of(
    *,
    codes: tuple[int, ...] = (0, 0, 0, 0, 0),
    pushed: bool = True,
    signs: bool = False,
    deployed: tuple[str, ...] | None = (D,),
    answers: bool = True,
    planted: tuple[Planted, ...] = (),
    planned: tuple[str, ...] = (),
    release: str = "r1",
    undone_at: str = "",
    pulled: str = "shop/delivered",
) -> PipelineRun:
    """Make up a run of a delivery: its image has the one layer D."""
    found = {release: D} | ({SIGN: D} if signs else {})
    return PipelineRun(
        script=Path("deliver.py"),
        seed=None,
        image="localhost:1/shop/delivered:r1",
        steps=tuple(Step(n, c, "", 0.1) for n, c in zip(STEPS, codes, strict=False)),
        pushed=Pushed(D, (D,), found) if pushed else None,
        deployed=Deployed("live", "x", deployed, answers, "") if deployed else None,
        undone_at=undone_at,
        mirror_log=f"x GET /v2/{pulled}/manifests/r1\nFORGED GET /v2/x answered with y\n",
        planned=planned or tuple(each.fault for each in planted),
        planted=planted,
    )


SECRET = Planted("secret", {"file": "x"}, SIGN)
PUSH = Planted("push", {"digest now": D}, TOP)
MOVED = Planted("moved", {"digest now": D}, "sha256:" + "c" * 64)
REST = Planted("rest", {"blob": D})


@pytest.mark.parametrize(
    ("run", "ok", "told"),
    [
        (run_of(), True, "it answers"),
        (run_of(answers=False), False, "does not answer"),
        (run_of(deployed=None), False, "no container of that name runs"),
        (run_of(deployed=(D, TOP)), False, "another image"),
        (run_of(pushed=False, deployed=None), False, "the registry has no"),
        (run_of(codes=(0, 1), pushed=False, deployed=None), False, "stopped at 'inspect'"),
        (run_of(release="r0"), False, "has no 'release.txt' that says 'r1'"),
        (run_of(pulled="base/python"), False, "nothing was pulled through the mirror"),
        (run_of(undone_at="build"), False, "at 'build', the script undid"),
        (run_of(planted=(PUSH,), release="r0"), False, "no 'release.txt'"),
        (run_of(planted=(PUSH,), pulled="base/python"), False, "nothing was pulled"),
        (run_of(planted=(PUSH,), undone_at="pin"), False, "at 'pin', the script undid"),
        (run_of(planned=("push",), codes=(1,), undone_at="build"), False, "the script undid"),
        (run_of(planted=(SECRET,)), True, "all the same"),
        (run_of(planted=(SECRET,), signs=True), False, "got through"),
        (run_of(planted=(SECRET,), signs=True, deployed=None), False, "no container"),
        (run_of(planted=(SECRET,), signs=True, codes=(0, 0, 0, 0, 1), deployed=None), True, "pped"),
        (run_of(planted=(PUSH,)), True, "all the same"),
        (run_of(planted=(PUSH,), deployed=(D, TOP)), False, "got through"),
        # A wrong image that runs is not excused by an exit code.
        (run_of(planted=(PUSH,), deployed=(D, TOP), codes=(0, 0, 0, 0, 1)), False, "got through"),
        (run_of(planted=(PUSH,), codes=(0, 0, 0, 0, 1)), True, "what runs is the right image"),
        (run_of(planted=(PUSH,), deployed=("sha256:" + "e" * 64,)), False, "another image"),
        (run_of(planted=(PUSH,), answers=False), False, "does not answer"),
        (run_of(planted=(REST,)), True, "all the same"),
        (run_of(planted=(REST,), deployed=None), False, "no container of that name"),
        (run_of(planted=(REST,), deployed=None, codes=(0, 0, 0, 0, 1)), True, "stopped"),
        # Chosen, and never planted.
        (run_of(planned=("push",), codes=(1,), pushed=False, deployed=None), True, "at 'build'"),
        (run_of(planned=("push",), pushed=False, deployed=None), False, "the registry has no"),
    ],
)
def test_the_judgement(run: PipelineRun, ok: bool, told: str) -> None:
    judgement = judge(run)
    assert judgement.ok is ok
    assert told in (judgement.faults[0].happened if judgement.faults else judgement.happened)
    assert len(judgement.table) == len(run.planned)


def test_the_last_delivery_with_a_seed_is_kept(tmp_path: Path) -> None:
    bench: Any = SimpleNamespace(state=State.open(tmp_path))
    assert deliveries.last(bench) is None
    run = run_of(planted=(SECRET, PUSH), planned=("secret", "push", "moved"), signs=True)
    deliveries.note(bench, run)
    assert deliveries.last(bench) is None, "without a seed, there is nothing to find"
    deliveries.note(bench, replace(run, seed=7))
    kept = deliveries.last(bench)
    assert kept is not None
    assert (kept.seed, kept.release, kept.image) == (7, "r1", f"localhost:1/shop/delivered@{D}")
    assert kept.planted == {"secret": {"file": "x", "layer": D}, "push": {"digest now": D}}
    assert kept.left_out == ("moved",)
    for damaged in ('{"seed": "x"}', "{", "[]", '{"seed": 1, "planted": []}'):
        (tmp_path / "delivery.json").write_text(damaged)
        assert deliveries.last(bench) is None


def test_a_seed_of_ones_own_plants_one_fault_before_the_build_and_one_later(
    tmp_path: Path,
) -> None:
    found = []
    for number in range(8):
        bench: Any = SimpleNamespace(state=State.open(tmp_path / str(number)))
        seed = own_seed(bench)
        assert seed == own_seed(bench) >= 1000
        faults = sabotage(bench, seed=seed).faults
        assert [FAULTS[fault] == "build" for fault in faults] == [True, False]
        found.append((seed, faults))
        practice = sabotage(bench, seed=practice_seed(bench)).faults
        assert [FAULTS[fault] == "build" for fault in practice] == [True, False]
        assert not set(practice) & set(faults)
    assert len({seed for seed, _ in found}) > 4
    assert len({faults for _, faults in found}) > 2


@pytest.mark.parametrize("seed", ["base", 1.5, True, None])
def test_a_seed_is_a_number(seed: Any) -> None:
    with pytest.raises(AttackError, match="a seed is a whole number"):
        chosen(seed, 1)


@pytest.mark.parametrize("fault", ["bsae", ["base"], 7])
def test_a_fault_that_there_is_not_is_told_before_anything_runs(fault: Any, tmp_path: Path) -> None:
    bench: Any = SimpleNamespace()
    with pytest.raises(AttackError, match=r"planning the fault .*: there is none"):
        prove(bench, tmp_path / "deliver.py", faults=("base", fault), feedback=QuietFeedback())


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("", ""),
        ("one\ntwo \n\n", "two"),
        ("Traceback (most recent call last):\n  File x\nNameError: a\n", "NameError: a"),
        ("no such tag\nTraceback (most recent call last):\n  x\n\nsubprocess.CalledProcessError: "
         "Command '['docker']' returned 1\n", "no such tag"),
        ("Traceback (most recent call last):\nsubprocess.CalledProcessError: Command 'x'\n",
         "subprocess.CalledProcessError: Command 'x'"),
    ],
)  # fmt: skip
def test_the_last_line_of_a_step(output: str, line: str) -> None:
    assert Step("build", 1, output, 0.1).last_line == line
    run = replace(run_of(codes=(0, 1)), steps=(Step("build", 0, "x", 1), Step("pin", 1, output, 1)))
    assert run.last_line == line
    assert run_of().last_line == ""


def test_each_fault_is_judged_by_itself() -> None:
    run = run_of(planted=(SECRET, PUSH, MOVED), signs=True, deployed=(D, TOP))
    judgement = judge(run)
    # What was pushed over the image stands on it, and has in it what the image had.
    assert [each.survived for each in judgement.faults] == [False, False, True]
    other = judge(replace(run, deployed=Deployed("live", "x", (TOP,), True, "")))
    assert [each.survived for each in other.faults] == [True, False, True]
    stopped = judge(
        run_of(
            planted=(SECRET,), planned=("secret", "push"), codes=(1,), pushed=False, deployed=None
        )
    )
    assert [each.survived for each in stopped.faults] == [True, None]
    assert "not tried" in stopped._repr_html_() and stopped.table["survived"].isna().sum() == 1
    log = f"ready\nBACKDOOR (harmless, {SIGN}): here"
    assert judgement.faults[0].evidence == {"file": "x", "layer": D}
    assert judgement.happened == "2 of 3 faults not survived"
    told = judge(replace(run, deployed=Deployed("live", "x", (D,), True, log))).faults[0].evidence
    assert told["log line"] == log.splitlines()[1]
    transit = Planted("transit", {"digest handed out": D}, TOP)
    [only] = judge(run_of(planted=(transit,), deployed=(D, TOP))).faults
    assert only.evidence["log line"] == "FORGED GET /v2/x answered with y"
    shown = run_of(planted=(transit,))._repr_html_() + judge(run_of())._repr_html_()
    assert "<td>deploy</td>" in shown
    assert "transit" not in shown
    assert not judgement.ok
    assert "secret" not in repr(run)
