"""The commands for images: on images made for the purpose, and on the slim base."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_images import put

from labapp import cli
from labapp.feedback import using
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
NONE = ("--cves", "none")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(registry: Registry) -> Iterator[str]:
    """The name of a repository with images of the tags ``one``, ``two``, ``far`` and ``index``."""
    here, far = (
        {"os": each.os, "architecture": each.architecture} for each in (Platform.here(), FOREIGN)
    )
    key = {"app/key.pem": "-----BEGIN RSA PRIVATE KEY-----\n"}
    entries = {
        tag: put(registry, REPOSITORY, tag, files, platform=platform, run={"User": "10001"})
        for tag, files, platform in (
            ("one", [SYSTEM, key, {"app/.wh.key.pem": ""}], here),
            ("two", [{"app/program": b"p" * 100}], here),
            ("far", [{"app/program": b"p"}], far),
        )
    }
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
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in a lab where nothing was ever started; returns its code and outputs."""
    monkeypatch.setenv("LABAPP_STATE", str(folder))
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> tuple[int, str, str]:
        with using(None):
            code = cli.main(arguments)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


def test_inspect_shows_what_is_there(run: Run, made: str) -> None:
    code, shown, _ = run("inspect", f"{made}:one", *NONE)
    first, digest, *lines = shown.splitlines()
    assert (code, first, len(digest)) == (0, f"{made}:one", len("sha256:") + 64)
    assert max(map(len, lines)) <= 80
    assert ["runs", "as", "user", "10001"] in map(str.split, lines)
    for title in ("Layers, lowest first", "Largest packages", "What helps an intruder"):
        assert title in lines
    assert "/app/key.pem" in shown, "a later layer deleted it, and yet it is there"
    assert "\x1b" not in shown


def test_json_is_all_that_standard_output_gets(run: Run, made: str, registry: Registry) -> None:
    code, shown, told = run("inspect", f"{made}:two", *NONE, "--json")
    found = json.loads(shown)
    image = registry.image(f"{made}:two")
    assert (code, found["digest"]) == (0, image.digest)
    assert found["download_bytes"] == image.manifest.download_bytes
    assert (found["files"], found["visible_bytes"]) == (1, 100)
    assert [each["instruction"] for each in found["layers"]] == ["COPY layer1 /"]
    assert (found["vulnerabilities"], found["packages"]) == (None, [])
    assert "verified" in told  # progress
    code, again, told = run("inspect", f"{made}:two", *NONE, "--json")
    assert (code, again) == (0, shown)
    assert "verified" not in told, "what was read is read again"
    for options, platform in ((("--platform", str(FOREIGN)), FOREIGN), ((), Platform.here())):
        code, shown, _ = run("inspect", f"{made}:index", *NONE, "--json", *options)
        assert (code, json.loads(shown)["platform"]) == (0, str(platform))


@pytest.mark.parametrize(
    ("tag", "options", "fact"),
    [
        ("nosuch", (), "tags far, index, one"),
        ("index", ("--platform", "linux/riscv64"), str(FOREIGN)),
        ("one", ("--platform", "linux/riscv64"), str(Platform.here())),
        ("one", (*NONE, "--charts", "{file}/x"), "{file}/x"),
        ("one", (*NONE, "--sbom", "spdx", "{file}/x"), "{file}/x"),
    ],
)
def test_what_can_not_be_done_is_told(
    run: Run, made: str, tmp_path: Path, tag: str, options: tuple[str, ...], fact: str
) -> None:
    file = tmp_path / "file"
    file.write_text("in the way", encoding="utf-8")
    words = [option.format(file=file) for option in options]
    code, shown, told = run("inspect", f"{made}:{tag}", *words)
    assert (code, shown) == (1, "")
    assert fact.format(file=file) in told


def test_compare(run: Run, made: str, tmp_path: Path) -> None:
    code, shown, _ = run("compare", f"{made}:one", f"mine={made}:two", *NONE)
    lines = shown.splitlines()
    layers = next(line for line in lines if line.startswith("layers"))
    assert (code, lines[0], lines[3]) == (0, "one", "mine")
    assert (lines[7].split(), layers.split()) == (["one", "mine"], ["layers", "3", "1"])
    assert max(map(len, lines[6:])) <= 80
    drawn = tmp_path / "charts"
    code, shown, told = run(
        "compare", f"{made}:one", f"{made}:two", *NONE, "--json", "--charts", str(drawn)
    )
    assert (code, list(json.loads(shown)["images"])) == (0, ["one", "two"])
    files = {file.name for file in drawn.iterdir()}
    assert {"sizes.png", "sizes.svg", "surface.png", "where-bytes-are.svg"} <= files
    assert "sizes.png, .svg" in told


def test_syft_reads_the_bills_of_materials(run: Run, slim: Reference, tmp_path: Path) -> None:
    files = {form: str(tmp_path / f"{form}.json") for form in ("cyclonedx", "spdx")}
    bills = [word for form, file in files.items() for word in ("--sbom", form, file)]
    code, shown, _ = run("inspect", str(slim), *NONE, "--json", *bills)
    assert code == 0
    packages = {(each["name"], each["version"]) for each in json.loads(shown)["packages"]}
    assert len(packages) > 80
    syft = str(Path(sys.executable).parent / "syft")
    for file in files.values():
        asked = [syft, "convert", "-q", file, "-o", "json"]
        answer = subprocess.run(asked, capture_output=True, check=True)
        assert packages == {
            (each["name"], each["version"])
            for each in json.loads(answer.stdout)["artifacts"]
            if each["type"] in ("deb", "python")
        }
