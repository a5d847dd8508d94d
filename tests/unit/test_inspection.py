"""What an inspection says of an image, from layers made in memory."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pandas as pd
import pytest

from labapp import listings
from labapp.contents import Contents
from labapp.contents.layers import read_layer
from labapp.contents.streams import LayerStream
from labapp.errors import VulnerabilityError
from labapp.inspection import Comparison, Inspection
from labapp.manifests import (
    OCI_CONFIG,
    OCI_LAYER,
    Descriptor,
    Manifest,
    Platform,
    digest_of,
    parse_config,
    parse_manifest,
)
from labapp.manifests.assembly import build_config, build_manifest
from labapp.reference import Reference
from labapp.registry.reader import RegistryImage
from labapp.vulnerabilities import Report

SYSTEM = {
    "etc/os-release": b'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="<b>Debian</b> 13"\n',
    "var/lib/dpkg/status": b"Package: bash\nStatus: install ok installed\nVersion: 5.2\n",
    "usr/bin/bash": b"#" * 3000,
    "usr/bin/su": b"s",
}
KEY = {"root/.ssh/id_rsa": b"-----BEGIN RSA PRIVATE KEY-----\n"}
GONE = {"root/.ssh/.wh.id_rsa": b""}
REASON = "looking up fixes: the mirror '<x>' is down. Try again later."


def contents(
    layers: Sequence[Mapping[str, bytes]],
    *,
    user: str = "",
    labels: Mapping[str, str] | None = None,
    tag: str = "1",
) -> Contents:
    raw = []
    for files in layers:
        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode="w") as written:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(content), 0o4755 if name.endswith("/su") else 0o755
                written.addfile(info, io.BytesIO(content))
        raw.append(held.getvalue())
    digests = [digest_of(data) for data in raw]
    config = build_config(
        platform=Platform("linux", "amd64"), diff_ids=digests, user=user, labels=labels
    )
    manifest = parse_manifest(
        build_manifest(
            Descriptor(OCI_CONFIG, digest_of(config), len(config)),
            [Descriptor(OCI_LAYER, digest, 50) for digest in digests],
        )
    )
    assert isinstance(manifest, Manifest)
    reference = Reference.parse(f"r.test/shop/web:{tag}")
    image = RegistryImage(reference, manifest, parse_config(config))
    read = [
        read_layer(
            LayerStream(iter([data]), on_chunk=lambda: None), diff_id=digest, doing="reading"
        )
        for data, digest in zip(raw, digests, strict=True)
    ]
    return Contents(image, tuple(read))


def report(state: str = "missing", *, knows_release: bool = True) -> Report:
    row = {
        "cve": "CVE-2026-1",
        "package": "bash",
        "source_package": "bash",
        "installed": "5.2",
        "fixed": "5.3",
        "date": pd.Timestamp("2026-02-03"),
        "state": state,
        "source": "a source",
        "severity": "",
        "headers": False,
    }
    when = datetime(2026, 11, 23, tzinfo=UTC)
    return Report(
        pd.DataFrame([row]), "a source", when, "It is blind.", knows_release=knows_release
    )


def test_an_image_in_facts() -> None:
    found = Inspection(contents([SYSTEM, KEY, GONE], user="10001:0"), report())
    facts = found.facts
    assert found.table.set_index("fact")["value"].to_dict() == facts
    assert facts["image"] == "r.test/shop/web:1"
    assert facts["digest"] == found.contents.image.digest
    assert facts["layers"] == "3"
    assert facts["download"] == "150 B"
    assert (facts["unpacked"], facts["of it wasted"]) == ("3.1 kB", "32 B")
    assert facts["packages"] == "1 Debian"
    assert (facts["shells"], facts["compilers"]) == ("1", "0")
    assert facts["set-uid and set-gid files"] == "1"
    assert facts["secrets"] == "1 (1 in files that a later layer hides)"
    assert facts["runs as"] == "user 10001:0"
    assert facts["fixes missing now"] == facts["CVEs fixed since the release"] == "1"
    assert found.notes[0] == "a source, as of 2026-11-23. It is blind."


@pytest.mark.parametrize("user", ["", "0", "root", "0:0", "root:app"])
def test_root_goes_by_several_names(user: str) -> None:
    assert Inspection(contents([], user=user), None).facts["runs as"] == "root"


@pytest.mark.parametrize(
    ("labels", "base"),
    [
        ({}, "not told"),
        ({"labapp.base.source": "debian-packages"}, "of Debian packages"),
        (
            {
                "labapp.base.source": "docker-hub",
                "org.opencontainers.image.base.name": "python:3.13",
            },
            "python:3.13, from Docker Hub",
        ),
        ({"org.opencontainers.image.base.name": "alpine:3.22"}, "alpine:3.22"),
    ],
)
def test_the_base_is_what_the_labels_say(labels: dict[str, str], base: str) -> None:
    assert Inspection(contents([], labels=labels), None).facts["base"] == base


def test_an_image_of_nothing() -> None:
    facts = Inspection(contents([]), None).facts
    assert (facts["layers"], facts["unpacked"], facts["packages"]) == ("0", "0 B", "none")
    assert (facts["system"], facts["secrets"]) == ("not told", "0")


def test_what_nobody_knows_is_not_zero() -> None:
    found = Inspection(contents([SYSTEM]), None, REASON)
    assert found.facts["fixes missing now"] == "not known"
    assert found.surface["CVEs fixed since the release"] is None
    assert json.loads(listings.as_json(found))["vulnerabilities_unknown"] == REASON
    with pytest.raises(VulnerabilityError, match="the mirror '<x>' is down"):
        _ = found.report
    # A scanner knows what is missing, and nothing of the release day.
    scanned = Inspection(contents([SYSTEM]), report(knows_release=False))
    assert scanned.facts["fixes missing now"] == "1"
    assert scanned.facts["CVEs fixed since the release"] == "not known"
    assert json.loads(listings.as_json(scanned))["vulnerabilities"]["since_release"] is None


def test_a_page_shows_texts_of_an_image_as_texts() -> None:
    page = Inspection(contents([SYSTEM]), None, REASON)._repr_html_()
    assert "&lt;b&gt;Debian&lt;/b&gt; 13" in page
    assert "the mirror &#x27;&lt;x&gt;&#x27; is down" in page
    assert "<b>" not in page
    assert "<script" not in page


def test_images_side_by_side() -> None:
    one = Inspection(contents([SYSTEM, KEY]), report(), "")
    other = Inspection(contents([SYSTEM], user="app", tag="2"), report("since release"))
    both = Comparison({"one": one, "other": other})
    assert list(both.table.columns) == ["one", "other"]
    assert list(both.table.loc["fixes missing now"]) == ["1", "0"]
    assert list(both.table.loc["runs as"]) == ["root", "user app"]
    assert both.notes == one.notes, "a note of both is said once"
    page = both._repr_html_()
    assert page.count("<tr") == len(both.table) + 1 - 2, "image and digest are too long for it"
    document = json.loads(listings.as_json(both))
    assert list(document["images"]) == ["one", "other"]
    assert document["images"]["one"]["layers"][0]["digest"] in str(document["images"]["other"])
