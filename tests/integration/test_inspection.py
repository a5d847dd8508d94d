"""The commands for images: on images made for the purpose, and on the slim base."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from labapp import cli
from labapp.engine import Engine
from labapp.manifests import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    History,
    Platform,
    digest_of,
)
from labapp.manifests.assembly import build_config, build_manifest
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.system.ports import free_port

REPOSITORY = "inspection/made"
FOREIGN = Platform("linux", "s390x")

RELEASE = (
    b'ID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\nPRETTY_NAME="Debian GNU/Linux 13"\n'
)
STATUS = b"Package: openssl\nStatus: install ok installed\nArchitecture: amd64\nVersion: 3.5.0-1\n"
KEY = b"-----BEGIN RSA PRIVATE KEY-----\n"
EVIL = "bin/\x1b[31mred"

Run = Callable[..., tuple[int, str, str]]


def archive(files: Mapping[str, bytes]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as written:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            written.addfile(info, io.BytesIO(content))
    return held.getvalue()


def put(
    registry: Registry, tag: str, *layers: Mapping[str, bytes], platform: Platform | None = None
) -> Descriptor:
    """Store an image of such files under a tag."""
    plain = [archive(files) for files in layers]
    blobs = []
    for raw in plain:
        digest, size = registry.upload_blob(REPOSITORY, [gzip.compress(raw, mtime=0)])
        blobs.append(Descriptor(OCI_LAYER, digest, size))
    config = build_config(
        platform=platform or Platform.here(),
        diff_ids=[digest_of(raw) for raw in plain],
        history=[History(f"COPY layer{number} /") for number in range(1, len(plain) + 1)],
        user="10001",
    )
    digest, size = registry.upload_blob(REPOSITORY, [config])
    raw = build_manifest(Descriptor(OCI_CONFIG, digest, size), blobs)
    return Descriptor(
        OCI_MANIFEST, registry.put_manifest(REPOSITORY, tag, raw, OCI_MANIFEST), len(raw)
    )


@pytest.fixture(scope="module")
def made(registry: Registry) -> Iterator[str]:
    """The name of a repository with images of the tags ``one``, ``two``, ``far`` and ``index``."""
    source = f"deb http://127.0.0.1:{free_port()}/debian-security trixie-security main\n".encode()
    system = {
        "etc/os-release": RELEASE,
        "etc/apt/sources.list": source,
        "var/lib/dpkg/status": STATUS,
        "bin/bash": b"#!" * 5000,
        EVIL: b"x",
    }
    one = put(registry, "one", system, {"app/key.pem": KEY}, {"app/.wh.key.pem": b""})
    two = put(registry, "two", {"app/program": b"p" * 100})
    far = put(registry, "far", {"app/program": b"p"}, platform=FOREIGN)
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            {
                "mediaType": each.media_type,
                "digest": each.digest,
                "size": each.size,
                "platform": {"os": platform.os, "architecture": platform.architecture},
            }
            for each, platform in ((two, Platform.here()), (far, FOREIGN))
        ],
    }
    digest = registry.put_manifest(REPOSITORY, "index", json.dumps(index).encode(), OCI_INDEX)
    yield f"{registry.address}/{REPOSITORY}"
    for each in (digest, one.digest, two.digest, far.digest):
        registry.delete_manifest(REPOSITORY, each)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder of these tests alone, so that the first to read an image finds no cache."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def run(
    folder: Path,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a command in a lab where nothing was ever started; returns its code and outputs."""
    monkeypatch.setenv("LABAPP_STATE", str(folder))
    monkeypatch.setenv("DOCKER_HOST", engine.host)

    def run(*arguments: str, columns: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
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
    assert facts["system"] == "Debian GNU/Linux 13"
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
    ("tag", "options", "words"),
    [
        ("nosuch", (), "there is no tag 'nosuch', the repository has the tags far, index, one"),
        ("index", ("--platform", "linux/riscv64"), "offers linux/"),
        ("one", ("--platform", "linux/riscv64"), "alone, not for linux/riscv64. Leave --platform"),
        ("one", ("--cves", "none", "--charts", "{file}/x"), "Choose a folder"),
        ("one", ("--cves", "none", "--sbom", "spdx", "{file}/x"), "Choose a file"),
    ],
)
def test_what_can_not_be_done_is_told(
    run: Run, made: str, tmp_path: Path, tag: str, options: tuple[str, ...], words: str
) -> None:
    file = tmp_path / "file"
    file.write_text("in the way", encoding="utf-8")
    code, shown, told = run(
        "inspect", f"{made}:{tag}", *(option.format(file=file) for option in options)
    )
    assert (code, shown) == (1, "")
    assert words in told


def test_an_image_that_is_only_on_the_engine(run: Run, engine: Engine, registry: Registry) -> None:
    name = f"{registry.address}/inspection/local"
    engine.client.api.import_image_from_data(archive({"x": b"1"}), repository=name, tag="1")
    engine.client.images.get(f"{name}:1").tag("inspection/bare", "1")
    try:
        code, _, told = run("inspect", f"{name}:1")
        assert code == 1
        assert f"Push it first: 'docker push {name}:1'." in told
        code, _, told = run("inspect", "inspection/bare:1")
        assert code == 1
        assert "Push it first: 'docker tag inspection/bare:1 localhost:PORT/inspection" in told
    finally:
        for tag in (f"{name}:1", "inspection/bare:1"):
            engine.client.images.remove(tag)


@pytest.mark.parametrize("columns", [80, 120])
def test_compare_shows_a_column_an_image(run: Run, made: str, columns: int) -> None:
    code, shown, _ = run(
        "compare", f"{made}:one", f"mine={made}:two", "--cves", "none", columns=columns
    )
    lines = shown.splitlines()
    assert code == 0
    assert [line.strip() for line in lines[:5:3]] == ["made", "mine"]
    head = lines[7].split()
    layers = next(line for line in lines if line.startswith("layers"))
    assert (head, layers.split()) == (["made", "mine"], ["layers", "3", "1"])
    assert max(map(len, lines[6:])) <= columns


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
