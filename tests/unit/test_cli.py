"""The command line and the doctor, as far as they need no engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from labapp import cli, cli_images, doctor, suite
from labapp.reference import Reference
from labapp.state import State

COMMANDS = [
    *("start", "stop", "status", "doctor", "run", "test", "reset", "bundle"),
    *("inspect", "compare", "progress", "report"),
]


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """A lab of its own, whose engine is not there."""
    monkeypatch.setenv("LABAPP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "LABAPP_STATE_TEST"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return State.open()


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
    text = capsys.readouterr().out
    assert f"Usage: python3 -m labapp {name}" in text
    assert len(text.split()) > 38


def test_help_comes_at_once() -> None:
    code = (
        "import sys; from labapp.cli import main; main(['--help']); "
        "print({'docker', 'pandas', 'IPython', 'requests'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.splitlines()[-1] == "set()", answer.stderr


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["nosuch"], 2, "No such command 'nosuch'"),
        (["start", "--port", "99999"], 2, "not in the range"),
        (["start", "--bases", "nowhere"], 2, "'nowhere' is not one of"),
        (["start"], 1, "labapp: looking for a container engine: none answers."),
        (["run", "77"], 1, "labapp: looking for chapter '77'"),
        (["reset", "--yes"], 1, "labapp: looking for a container engine"),
        (["bundle", "load", "/nosuch/file.tar"], 2, "does not exist"),
        (["test", "tests/integration"], 1, "labapp: looking for a container engine"),
        (["inspect", "local/x:"], 1, "labapp: reading the image reference 'local/x:': the tag"),
        (["inspect", "localhost:1/shop/web"], 1, "nothing listens at 'localhost:1'"),
        (["inspect", "localhost:1/shop/web", "--sbom", "spdx"], 2, "requires 2 arguments"),
        (["inspect", "localhost:1/shop/web", "--sbom", "xml", "f"], 2, "'xml' is not one of"),
        (["compare"], 2, "Missing argument"),
        (["compare", "localhost:1/shop/web", "localhost:1/shop/web"], 2, "Give each its own"),
        (["compare", "localhost:1/web", "web"], 1, "'web': it names no registry"),
        (["inspect"], 2, "Missing argument 'REFERENCE'"),
        (["inspect", "Shop/web"], 1, "repositories are lower case, write 'shop/web'"),
        (
            ["inspect", "shop/web:1.4"],
            1,
            "it names no registry. Write 'localhost:PORT/shop/web:1.4' for the lab's own registry, "
            "or 'docker.io/shop/web:1.4' for Docker Hub.",
        ),
        (["inspect", "python"], 1, "or 'docker.io/library/python' for Docker Hub"),
        (["inspect", "localhost:1/shop/web", "--platform", "arm"], 2, "not of the form os/arch"),
        (["inspect", "localhost:1/shop/web", "--cves", "x"], 2, "'x' is not one of"),
        (["compare", "localhost:1/shop/web"], 2, "takes two images or more"),
        (["compare", "=localhost:1/a", "localhost:1/b"], 2, "no name before the '='"),
        (["compare", "a=localhost:1/a", "a=localhost:1/b"], 2, "two images have the same name"),
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


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["r.test/shop/full:1", "r.test/shop/slim:1"], ["full", "slim"]),
        (["r.test/shop/full:1", "r.test/shop/slim:2"], ["full", "slim"]),
        (["r.test/shop/web:full", "r.test/shop/web:slim"], ["full", "slim"]),
        (["r.test/web", "r.test/web:1"], ["latest", "1"]),
        (["r.test/web:1", "r.test/api:1", "r.test/web:2"], ["web:1", "api:1", "web:2"]),
        (["r.test/a/web:1", "r.test/b/web:1"], ["r.test/a/web:1", "r.test/b/web:1"]),
        (["docker.io/python:3.13", "docker.io/library/python:3.14"], ["3.13", "3.14"]),
        (["before=r.test/web:1", "r.test/web:2"], ["before", "web"]),
        (["web=r.test/x:1", "r.test/web:2"], ["web", "2"]),
        (
            [f"r.test/web@sha256:{'a' * 64}", f"r.test/web@sha256:{'b' * 64}"],
            ["sha256:" + 12 * "a", "sha256:" + 12 * "b"],
        ),
    ],
)
def test_names_of_columns(own_state: State, texts: list[str], names: list[str]) -> None:
    named = cli_images.column_names([cli_images.named(text, own_state) for text in texts])
    assert list(named) == names
    assert list(named.values()) == [Reference.parse(text.rpartition("=")[2]) for text in texts]


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
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["test", "tests/unit/nosuch.py", "-q", "-p", "no:cacheprovider"]) == 4
    captured = capfd.readouterr()
    assert "file or directory not found: tests/unit/nosuch.py" in captured.err


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
