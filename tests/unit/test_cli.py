"""The command line and the doctor, as far as they need no engine."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_images import Memory, put
from registries import Reply, Seen, serving

from labapp import cli, doctor
from labapp.feedback import using
from labapp.state import State

COMMANDS = [
    *("start", "stop", "status", "doctor", "run", "test", "reset", "tidy", "bundle"),
    *("inspect", "compare", "progress", "report", "hand-in", "prepare", "room"),
]


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """A lab of its own, whose engine is not there."""
    monkeypatch.setenv("LABAPP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.delenv("LABAPP_STATE_TEST", raising=False)
    with using(None):
        yield State.open()


def test_each_command_is_listed_and_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    listing = capsys.readouterr().out.partition("Commands:")[2]
    assert [line.split()[0] for line in listing.splitlines() if line.startswith("  ")][:-1] == (
        sorted(COMMANDS)
    )
    assert "..." not in listing, "a summary is cut off"
    for name in COMMANDS:
        assert cli.main([name, "--help"]) == 0
        assert f"Usage: python3 -m labapp {name}" in capsys.readouterr().out


def test_a_pipe_that_lacks_a_letter_gets_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, encoding="latin-1"))
    assert cli.main(["inspect", "--help"]) == 0
    sys.stdout.flush()
    assert b"owner/image@sha256:?" in pipe.getvalue()


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["nosuch"], 2, "No such command 'nosuch'"),
        (["start"], 1, "none.sock"),
        (["run", "77"], 1, "'77'"),
        (["reset", "--yes"], 1, "none.sock"),
        (["tidy", "--yes"], 1, "none.sock"),
        (["test", "tests/integration"], 1, "none.sock"),
        (["inspect", "Shop/web"], 1, "'Shop/web'"),
        (["inspect", "localhost:1/shop/web"], 1, "localhost:1"),
        (["inspect", "shop/web:1.4"], 1, "'docker.io/shop/web:1.4'"),
        (["inspect", "python"], 1, "'docker.io/python'"),
        (["inspect", "localhost:1/shop/web", "--platform", "arm"], 2, "not of the form os/arch"),
        (["compare", "localhost:1/shop/web"], 2, "two images"),
        (["compare", "localhost:1/web", "web"], 1, "'web'"),
        (["compare", "localhost:1/shop/web", "localhost:1/shop/web"], 2, "name=REFERENCE"),
        (["compare", "a=localhost:1/a", "a=localhost:1/b"], 2, "name=REFERENCE"),
        (["hand-in", "class/ada"], 1, "'docker.io/class/ada'"),
        (["hand-in", "https://r.example/class"], 1, "'r.example/class"),
        (["hand-in", "localhost:1/class", "--ca", __file__], 2, "test_cli.py' holds no cert"),
        (["hand-in", "localhost:1/class"], 1, "none.sock"),
        (["report"], 2, "FOLDER"),
        (["report", "--registry", "localhost:1/class"], 1, "localhost:1"),
    ],
)
def test_a_failure_is_told_in_words_and_by_the_exit_code(
    capsys: pytest.CaptureFixture[str], argv: list[str], code: int, message: str
) -> None:
    assert cli.main(argv) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


SYSTEM = {
    "etc/os-release": "ID=debian\nVERSION_ID='13'\nVERSION_CODENAME=trixie\n",
    "var/lib/dpkg/status": "Package: bash\nStatus: install ok installed\nVersion: 5.2\n",
}
MAIN = "import sys; from labapp.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("silent", ["manifests/1", "blobs/", "InRelease"])
def test_who_stops_an_inspection_waits_for_no_server(silent: str) -> None:
    held, asked, over = Memory(), threading.Event(), threading.Event()

    def answer(seen: Seen) -> Reply:
        if silent in seen.path and not ("blobs/" in silent and config in seen.path):
            asked.set()
            over.wait(60)
        return Reply(200, held.held[seen.path.rpartition("/")[2]])

    with serving(answer) as server:
        mirror = "".join(
            f"deb http://{server.address}/debian {name} main\n"
            for name in ("trixie", "trixie-security")
        )
        put(held, "a/b", "1", [SYSTEM | {"etc/apt/sources.list": mirror}])
        config = held.image("r.test/a/b:1").manifest.config.digest
        command = [sys.executable, "-c", MAIN, "inspect", f"{server.address}/a/b:1"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe) as process:
            assert asked.wait(60)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
            assert time.monotonic() - began < 5  # of a busy machine; alone, a fifth of a second
        assert process.returncode in (130, -signal.SIGINT)
        over.set()


@pytest.mark.parametrize(("needed", "disk"), [(0.0, "OK"), (1e9, "DO")])
def test_where_nothing_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, needed: float, disk: str
) -> None:
    monkeypatch.setattr(doctor, "NEEDED_GB", needed)
    for command in ("status", "doctor"):
        assert cli.main([command]) == 1
        text = capsys.readouterr().out
        assert "DO   engine" in text and "none.sock" in text and "labapp start" in text
    assert f"{disk}   disk" in text
    assert cli.main(["stop"]) == 0


def test_the_tests_have_a_lab_apart_their_arguments_and_exit_code(
    own_state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub, said = tmp_path / "python", tmp_path / "said"
    stub.write_text(f'#!/bin/sh\necho "$LABAPP_STATE $@" > "{said}"\nexit 4\n')
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    monkeypatch.setenv("LABAPP_BASES", "debian")  # or it is set for what comes after
    for named in (f"{own_state.folder}-test", str(tmp_path / "elsewhere")):
        monkeypatch.setenv("LABAPP_STATE", str(own_state.folder))
        assert cli.main(["test", "tests/unit/nosuch.py", "-q"]) == 4
        words = said.read_text().split()
        assert words[:3] == [named, "-m", "pytest"]
        assert words[-2:] == ["tests/unit/nosuch.py", "-q"]
        monkeypatch.setenv("LABAPP_STATE_TEST", str(tmp_path / "elsewhere"))


QUICK = [
    ("main(['--help'])", {"docker", "requests", "rich"}),
    ("main(['progress'])", {"docker"}),
    ("main(['inspect', 'localhost:1/shop/web'])", {"numpy"}),
    ("main(['status'])", {"numpy", "cryptography", "joserfc"}),
    ("main(['doctor'])", {"numpy", "cryptography"}),
    ("from labapp import open_lab, charts", set()),
]
"""In an order in which none is forbidden what one before it needs: one process does them all."""


def test_what_is_quick_imports_nothing_slow() -> None:
    code = "import sys; from labapp.cli import main\n"
    for action, slow in QUICK:
        never = slow | {"pandas", "matplotlib", "IPython"}
        code += f"{action}\nassert not {never} & {{*sys.modules}}, {action!r}\n"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
