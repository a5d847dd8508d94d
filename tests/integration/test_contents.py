"""What Syft says of the same images, and what it reads in the lab's bills of materials."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from labapp import cli
from labapp.feedback import using
from labapp.inside.image import Contents
from labapp.reference import Reference

BIN = Path(sys.executable).parent


@pytest.mark.parametrize("variant", ["full", "slim"])
def test_syft_finds_the_same_packages(inside: dict[str, Contents], variant: str) -> None:
    found = inside[variant]
    environ = os.environ | {
        "SYFT_REGISTRY_INSECURE_USE_HTTP": "true",
        "SYFT_CHECK_FOR_APP_UPDATE": "false",
    }
    source = f"registry:{str(found.image.pinned).replace('localhost', '127.0.0.1')}"
    command = [str(BIN / "syft"), "-q", "-o", "json", source]
    output = subprocess.run(command, check=True, capture_output=True, env=environ).stdout
    layers = dict(zip(found.image.config.diff_ids, found.layers["number"], strict=True))
    theirs = set()
    where: dict[str, set[int]] = {}
    for artifact in json.loads(output)["artifacts"]:
        source_package = artifact.get("metadata", {}).get("source", "") or artifact["name"]
        if artifact["type"] == "python":
            source_package = artifact["name"]
            where[artifact["name"]] = {layers[each["layerID"]] for each in artifact["locations"]}
        theirs.add((artifact["type"], artifact["name"], artifact["version"], source_package))
    packages = found.packages.copy()
    # Syft tells Python's names in the form that indexes compare them by; the lab, as written.
    is_python = packages["kind"] == "python"
    for column in ("name", "source"):
        same = packages[column].str.lower().str.replace("_", "-")
        packages[column] = packages[column].mask(is_python, same)
    ours = packages[["kind", "name", "version", "source"]]
    assert set(ours.itertuples(index=False, name=None)) == theirs
    assert len(theirs) > 100
    # Of Debian's packages Syft tells the layer of the newest database, not the package's own.
    python = packages[is_python]
    assert {name: {layer} for name, layer in python[["name", "layer"]].values} == where


def test_inspect_a_base_image_whose_bills_of_materials_syft_reads(
    slim: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The command needs no lab that was ever started, and an engine neither.
    monkeypatch.setenv("LABAPP_STATE", str(tmp_path / "state"))
    files = {form: str(tmp_path / f"{form}.json") for form in ("cyclonedx", "spdx")}
    bills = [word for form, file in files.items() for word in ("--sbom", form, file)]
    with using(None):
        assert cli.main(["inspect", str(slim), "--cves", "none", "--json", *bills]) == 0
    found = json.loads(capsys.readouterr().out)["packages"]
    packages = {(each["name"], each["version"]) for each in found}
    assert len(packages) > 80
    for file in files.values():
        asked = [str(BIN / "syft"), "convert", "-q", file, "-o", "json"]
        answer = subprocess.run(asked, capture_output=True, check=True)
        assert packages == {
            (each["name"], each["version"])
            for each in json.loads(answer.stdout)["artifacts"]
            if each["type"] in ("deb", "python")
        }
    with using(None):
        assert cli.main(["inspect", f"{slim.name}:nosuch"]) == 1
    assert "-slim" in capsys.readouterr().err
