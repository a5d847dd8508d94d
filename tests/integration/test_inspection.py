"""The commands for images: on images made for the purpose, and on the slim base."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_images import put

from labapp import cli
from labapp.feedback import TerminalFeedback, using
from labapp.machine.ports import free_port
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.manifests import OCI_INDEX, Platform

REPOSITORY = "inspection/made"
FOREIGN = Platform("linux", "s390x")
SYSTEM = {
    "etc/os-release": "ID=debian\nVERSION_ID=13\nVERSION_CODENAME=trixie\nPRETTY_NAME=Debian",
    "var/lib/dpkg/status": "Package: openssl\nStatus: install ok installed\n"
    "Architecture: amd64\nVersion: 3.5.0-1\n",
    "bin/bash": b"#!" * 5000,
    "bin/\x1b[31mred": b"x",
}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(registry: Registry) -> Iterator[str]:
    """The name of a repository with images of the tags ``one``, ``two``, ``far`` and ``index``."""
    source = f"deb http://127.0.0.1:{free_port()}/debian-security trixie-security main\n"
    here, far = (
        {"os": each.os, "architecture": each.architecture} for each in (Platform.here(), FOREIGN)
    )
    layers: dict[str, list[dict[str, bytes | str]]] = {
        "one": [
            SYSTEM | {"etc/apt/sources.list": source},
            {"app/key.pem": "-----BEGIN RSA PRIVATE KEY-----\n"},
            {"app/.wh.key.pem": ""},
        ],
        "two": [{"app/program": b"p" * 100}],
        "far": [{"app/program": b"p"}],
    }
    entries = {
        tag: put(
            registry, REPOSITORY, tag, files,
            platform=far if tag == "far" else here, run={"User": "10001"},
        )
        for tag, files in layers.items()
    }  # fmt: skip
    manifests = [entries["two"], entries["far"]]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    digest = registry.put_manifest(REPOSITORY, "index", json.dumps(index).encode(), OCI_INDEX)
    yield f"{registry.address}/{REPOSITORY}"
    for each in (digest, *(entry["digest"] for entry in entries.values())):
        registry.delete_manifest(REPOSITORY, each)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder of these tests alone, so that the first to read an image finds no cache."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def run(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a command in a lab where nothing was ever started; returns its code and outputs."""
    monkeypatch.setenv("LABAPP_STATE", str(folder))

    def run(*arguments: str, columns: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        with using(TerminalFeedback()):
            code = cli.main(arguments)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize("columns", [80, 120])
def test_inspect_shows_what_is_there(run: Run, made: str, columns: int) -> None:
    code, shown, _ = run("inspect", f"{made}:one", "--cves", "none", columns=columns)
    assert code == 0
    first, digest, *lines = shown.splitlines()
    assert (first, len(digest)) == (f"{made}:one", len("sha256:") + 64)
    assert max(map(len, lines)) <= columns
    facts = {line[:30].strip(): line[30:].strip() for line in lines[: lines.index("", 1)]}
    assert facts["layers"] == "3"
    assert facts["system"] == "Debian"
    assert facts["packages"] == "1 Debian"
    assert facts["shells"] == "1"
    assert facts["runs as"] == "user 10001"
    assert facts["fixes missing now"] == "not known"
    for title in ("Layers, lowest first", "Largest packages", "What helps an intruder"):
        assert title in lines
    # A later layer deleted it, and yet it is there.
    assert "/app/key.pem" in shown
    assert "still in" in shown
    assert "COPY layer2 /" in shown
    assert "\x1b" not in shown


def test_json_is_all_that_standard_output_gets(run: Run, made: str, registry: Registry) -> None:
    code, shown, told = run("inspect", f"{made}:two", "--cves", "none", "--json")
    found = json.loads(shown)
    image = registry.image(f"{made}:two")
    assert code == 0
    assert found["digest"] == image.digest
    assert found["download_bytes"] == image.manifest.download_bytes
    assert (found["files"], found["visible_bytes"]) == (1, 100)
    assert [each["instruction"] for each in found["layers"]] == ["COPY layer1 /"]
    assert (found["vulnerabilities"], found["packages"]) == (None, [])
    assert "verified" in told  # progress
    code, again, told = run("inspect", f"{made}:two", "--cves", "none", "--json")
    assert (code, again) == (0, shown)
    assert "verified" not in told, "what was read is read again"


def test_a_mirror_that_is_down_costs_only_its_own_lines(run: Run, made: str) -> None:
    code, shown, _ = run("inspect", f"{made}:one", "--cves", "debian", "--json")
    found = json.loads(shown)
    assert code == 0
    assert found["vulnerabilities"] is None
    assert "127.0.0.1" in found["vulnerabilities_unknown"]
    code, shown, _ = run("inspect", f"{made}:one")
    assert code == 0
    assert "Vulnerabilities: " in shown
    assert "not known" in shown


def test_which_image_of_an_index(run: Run, made: str) -> None:
    options = ("--cves", "none", "--json")
    code, shown, _ = run("inspect", f"{made}:index", "--platform", str(FOREIGN), *options)
    assert (code, json.loads(shown)["platform"]) == (0, str(FOREIGN))
    code, shown, _ = run("inspect", f"{made}:index", *options)
    assert (code, json.loads(shown)["platform"]) == (0, str(Platform.here()))


@pytest.mark.parametrize(
    ("tag", "options", "fact"),
    [
        ("nosuch", (), "tags far, index, one"),
        ("index", ("--platform", "linux/riscv64"), str(FOREIGN)),
        ("one", ("--platform", "linux/riscv64"), str(Platform.here())),
        ("one", ("--cves", "none", "--charts", "{file}/x"), "{file}/x"),
        ("one", ("--cves", "none", "--sbom", "spdx", "{file}/x"), "{file}/x"),
    ],
)
def test_what_can_not_be_done_is_told(
    run: Run, made: str, tmp_path: Path, tag: str, options: tuple[str, ...], fact: str
) -> None:
    file = tmp_path / "file"
    file.write_text("in the way", encoding="utf-8")
    code, shown, told = run(
        "inspect", f"{made}:{tag}", *(option.format(file=file) for option in options)
    )
    assert (code, shown) == (1, "")
    assert fact.format(file=file) in told


def test_compare_shows_a_column_an_image(run: Run, made: str) -> None:
    code, shown, _ = run("compare", f"{made}:one", f"mine={made}:two", "--cves", "none")
    lines = shown.splitlines()
    assert code == 0
    assert [line.strip() for line in lines[:5:3]] == ["made", "mine"]
    head = lines[7].split()
    layers = next(line for line in lines if line.startswith("layers"))
    assert (head, layers.split()) == (["made", "mine"], ["layers", "3", "1"])
    assert max(map(len, lines[6:])) <= 80


def test_compare_writes_charts_and_json(run: Run, made: str, tmp_path: Path) -> None:
    code, shown, told = run(
        "compare", f"{made}:one", f"{made}:two", "--cves", "none", "--json",
        "--charts", str(tmp_path / "charts"),
    )  # fmt: skip
    assert code == 0
    assert list(json.loads(shown)["images"]) == ["one", "two"]
    files = {file.name for file in (tmp_path / "charts").iterdir()}
    assert {"sizes.png", "sizes.svg", "surface.png", "where-bytes-are.svg"} <= files
    assert "sizes.png, .svg" in told


def converted(file: Path) -> set[tuple[str, str]]:
    """The packages that Syft reads out of a bill of materials."""
    syft = Path(sys.executable).parent / "syft"
    answer = subprocess.run(
        [str(syft), "convert", "-q", str(file), "-o", "json"], capture_output=True, check=True
    )
    artifacts: list[dict[str, Any]] = json.loads(answer.stdout)["artifacts"]
    return {
        (each["name"], each["version"]) for each in artifacts if each["type"] in ("deb", "python")
    }


def test_syft_reads_the_bills_of_materials(run: Run, slim: Reference, tmp_path: Path) -> None:
    files = {form: tmp_path / f"{form}.json" for form in ("cyclonedx", "spdx")}
    bills = [word for form, file in files.items() for word in ("--sbom", form, str(file))]
    code, shown, _ = run("inspect", str(slim), "--cves", "none", "--json", *bills)
    assert code == 0
    packages = {(each["name"], each["version"]) for each in json.loads(shown)["packages"]}
    assert len(packages) > 80
    for file in files.values():
        assert converted(file) == packages
