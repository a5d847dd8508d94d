"""The command line and the doctor, as far as they need no engine."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from labapp import cli, doctor, suite
from labapp.feedback import TerminalFeedback, using
from labapp.state import State

COMMANDS = [
    *("start", "stop", "status", "doctor", "run", "test", "reset", "bundle"),
    *("inspect", "compare", "progress", "report"),
]


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """A lab of its own, whose engine is not there."""
    monkeypatch.setenv("LABAPP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "LABAPP_STATE_TEST"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with using(TerminalFeedback()):
        yield State.open()


def test_help_names_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    listing = capsys.readouterr().out.partition("Commands:")[2]
    assert [line.split()[0] for line in listing.splitlines() if line.startswith("  ")][:-1] == (
        sorted(COMMANDS)
    )
    assert "..." not in listing, "a summary is cut off"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"Usage: python3 -m labapp {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["nosuch"], 2, "No such command 'nosuch'"),
        (["start", "--port", "99999"], 2, "not in the range"),
        (["start", "--bases", "nowhere"], 2, "'nowhere' is not one of"),
        (["start"], 1, "none.sock"),
        (["run", "77"], 1, "'77'"),
        (["reset", "--yes"], 1, "none.sock"),
        (["bundle", "load", "/nosuch/file.tar"], 2, "does not exist"),
        (["test", "tests/integration"], 1, "none.sock"),
        (["inspect", "local/x:"], 1, "'local/x:'"),
        (["inspect", "localhost:1/shop/web"], 1, "localhost:1"),
        (["inspect", "localhost:1/shop/web", "--sbom", "spdx"], 2, "requires 2 arguments"),
        (["inspect", "localhost:1/shop/web", "--sbom", "xml", "f"], 2, "'xml' is not one of"),
        (["compare"], 2, "Missing argument"),
        (["compare", "localhost:1/shop/web", "localhost:1/shop/web"], 2, "name=REFERENCE"),
        (["compare", "localhost:1/web", "web"], 1, "'web'"),
        (["inspect"], 2, "Missing argument 'REFERENCE'"),
        (["inspect", "Shop/web"], 1, "'Shop/web'"),
        (
            ["inspect", "shop/web:1.4"],
            1,
            "'docker.io/shop/web:1.4'",
        ),
        (["inspect", "python"], 1, "'docker.io/library/python'"),
        (["inspect", "localhost:1/shop/web", "--platform", "arm"], 2, "not of the form os/arch"),
        (["inspect", "localhost:1/shop/web", "--cves", "x"], 2, "'x' is not one of"),
        (["compare", "localhost:1/shop/web"], 2, "two images"),
        (["compare", "=localhost:1/a", "localhost:1/b"], 2, "'='"),
        (["compare", "a=localhost:1/a", "a=localhost:1/b"], 2, "same name"),
    ],
)
def test_a_failure_is_told_in_words_and_by_the_exit_code(
    capsys: pytest.CaptureFixture[str], argv: list[str], code: int, message: str
) -> None:
    assert cli.main(argv) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_a_bare_name_is_told_the_port_of_the_labs_registry(
    capsys: pytest.CaptureFixture[str], own_state: State
) -> None:
    own_state.write("registry", {"port": 41233})
    assert cli.main(["inspect", "shop/web"]) == 1
    assert "Write 'localhost:41233/shop/web' for the lab's own" in capsys.readouterr().err


def test_stop_where_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["stop"]) == 0
    assert "stopped" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_without_an_engine_the_line_says_what_to_do(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert cli.main([command]) == 1
    text = capsys.readouterr().out
    assert "DO   engine" in text
    assert "none.sock" in text
    assert "labapp start" in text


def test_the_tests_have_a_lab_apart(own_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    assert suite.folder() == own_state.folder.with_name("state-test")
    monkeypatch.setenv("LABAPP_STATE_TEST", "/elsewhere")
    assert suite.folder() == Path("/elsewhere")


def test_test_passes_on_its_arguments_and_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub, said = tmp_path / "python", tmp_path / "said"
    stub.write_text(f'#!/bin/sh\necho "$@" > "{said}"\nexit 4\n')
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    assert cli.main(["test", "tests/unit/nosuch.py", "-q"]) == 4
    words = said.read_text().split()
    assert words[:2] == ["-m", "pytest"]
    assert words[-2:] == ["tests/unit/nosuch.py", "-q"]


RUN = "from labapp.cli import main; main({})"
QUICK = [
    (RUN.format(["--help"]), {"docker", "pandas", "IPython", "requests", "rich"}),
    (RUN.format(["status"]), {"pandas", "matplotlib", "IPython", "cryptography", "joserfc"}),
    (RUN.format(["doctor"]), {"pandas", "matplotlib", "IPython", "cryptography"}),
    (RUN.format(["progress"]), {"docker", "pandas", "matplotlib", "IPython"}),
    (RUN.format(["inspect", "localhost:1/shop/web"]), {"pandas", "matplotlib", "IPython"}),
    ("from labapp import open_lab, charts", {"pandas", "matplotlib", "IPython"}),
]


@pytest.mark.parametrize(("code", "slow"), QUICK)
def test_what_is_quick_imports_nothing_slow(code: str, slow: set[str]) -> None:
    code += f"; import sys; print({slow} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.splitlines()[-1] == "set()", answer.stderr


@pytest.mark.parametrize(
    ("environ", "info", "ok", "words"),
    [
        ({}, {}, True, "none set"),
        ({"HTTP_PROXY": "http://p:3128"}, {}, False, "NO_PROXY=localhost,127.0.0.1"),
        ({"https_proxy": "http://p:3128", "no_proxy": "localhost"}, {}, False, "NO_PROXY"),
        (
            {"HTTP_PROXY": "http://p:3128", "NO_PROXY": "localhost, 127.0.0.1"},
            {},
            True,
            "HTTP_PROXY is 'http://p:3128'",
        ),
        ({}, {"HttpProxy": "http://q:1", "HttpsProxy": ""}, True, "engine fetches .* 'http://q:1'"),
    ],
)
def test_the_doctor_looks_at_proxies(
    environ: dict[str, str], info: dict[str, str], ok: bool, words: str
) -> None:
    finding = doctor.proxies(info, environ)
    assert finding.ok is ok
    assert re.search(words, finding.text)


def test_the_doctor_looks_at_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.disk("disk", tmp_path).text.endswith(f"GB free at '{tmp_path}'")
    monkeypatch.setattr(doctor, "NEEDED_GB", 1e9)
    finding = doctor.disk("disk", tmp_path)
    assert not finding.ok
    assert "Free some space" in finding.text
