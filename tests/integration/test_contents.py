"""What others say of the same images: Syft, also of bills of materials, and Debian's mirror."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from labapp import cli
from labapp.bench import Bench
from labapp.feedback import QuietFeedback, using
from labapp.inside import image
from labapp.inside.image import Contents
from labapp.inside.known import known
from labapp.reference import Reference

BIN = Path(sys.executable).parent


@pytest.mark.parametrize("variant", ["slim", "minimal"])
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
    assert len(theirs) > 20
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


def test_the_mirror_of_a_real_image(
    bench: Bench, slim: Reference, tmp_path: Path, feedback: QuietFeedback
) -> None:
    layers = bench.state.path("cache", "layers")
    held = image.read(bench.registry, bench.registry.image(slim), folder=layers)
    report = known(held, folder=tmp_path)
    assert report.source == "Debian's own fixes"
    assert report.notes == ()
    assert timedelta(0) < datetime.now(UTC) - report.date < timedelta(days=30)
    # OpenSSL and Expat have had security updates again and again, the C library point releases;
    # the slim base holds all three.
    assert report.since_release >= max(report.missing, 20)
    assert {"openssl", "expat", "glibc"} <= set(report.rows["source_package"])
    assert report.rows["date"].min() > pd.Timestamp("2025-08-09")
    assert list(report.by_month["cves"])[-1] == report.since_release
