"""Bills of materials: valid by their own libraries, whole, and the same for the same image."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from labapp import sbom
from labapp.contents import Contents
from labapp.contents.layers import Layer, read_layer
from labapp.contents.streams import LayerStream
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

WHEN = datetime(2026, 11, 23, 8, 30, 15, 999, tzinfo=UTC)

STATUS = """\
Package: libstdc++6
Status: install ok installed
Architecture: amd64
Source: gcc-14 (14.2.0-19)
Version: 14.2.0-19+b1

Package: tzdata
Status: install ok installed
Architecture: all
Version: 2025b-4+deb13u1

Package: perl-base
Status: install ok installed
Architecture: amd64
Source: perl
Version: 5.40.1-6
"""

DEBIAN: dict[str, str] = {
    "etc/os-release": 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
    "var/lib/dpkg/status": STATUS,
}


def distribution(name: str, version: str, folder: str = "usr/lib/python3") -> dict[str, str]:
    path = f"{folder}/{name.lower()}-{version}.dist-info/METADATA"
    return {path: f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}


def layer(files: Mapping[str, str]) -> tuple[Layer, str]:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as written:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content.encode())
            written.addfile(info, io.BytesIO(content.encode()))
    digest = digest_of(held.getvalue())
    stream = LayerStream(iter([held.getvalue()]), on_chunk=lambda: None)
    return read_layer(stream, diff_id=digest, doing="reading a layer"), digest


def contents(*layers: Mapping[str, str], reference: str = "localhost:5/shop/web:1.4") -> Contents:
    """What is inside an image with such files in its layers."""
    read = [layer(files) for files in layers]
    digests = [digest for _, digest in read]
    config = build_config(platform=Platform("linux", "amd64"), diff_ids=digests)
    raw = build_manifest(
        Descriptor(OCI_CONFIG, digest_of(config), len(config)),
        [Descriptor(OCI_LAYER, digest, 1) for digest in digests],
    )
    manifest = parse_manifest(raw)
    assert isinstance(manifest, Manifest)
    image = RegistryImage(Reference.parse(reference), manifest, parse_config(config))
    return Contents(image, tuple(held for held, _ in read))


DISTRIBUTIONS = distribution("Foo_Bar", "1.0+x") | distribution("attrs", "25.1.0")
MADE = contents(DEBIAN, DISTRIBUTIONS)

PURLS = {
    "pkg:deb/debian/libstdc%2B%2B6@14.2.0-19%2Bb1"
    "?arch=amd64&distro=debian-13&upstream=gcc-14%4014.2.0-19",
    "pkg:deb/debian/tzdata@2025b-4%2Bdeb13u1?arch=all&distro=debian-13",
    "pkg:deb/debian/perl-base@5.40.1-6?arch=amd64&distro=debian-13&upstream=perl",
    "pkg:pypi/foo-bar@1.0%2Bx",
    "pkg:pypi/attrs@25.1.0",
}


def libraries(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [part for part in document.get("components", []) if part["type"] == "library"]


def locators(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The packages of an SPDX document by their URL."""
    return {
        reference["referenceLocator"]: package
        for package in document["packages"]
        for reference in package["externalRefs"]
        if package["SPDXID"] != "SPDXRef-image"
    }


def test_cyclonedx_names_packages_and_layers() -> None:
    document = json.loads(sbom.cyclonedx(MADE, when=WHEN))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    found = {part["purl"]: part for part in libraries(document)}
    assert set(found) == PURLS
    lower, upper = MADE.layers["digest"]
    for purl, part in found.items():
        digest = upper if "pypi" in purl else lower
        assert part["properties"] == [{"name": sbom.LAYER_PROPERTY, "value": digest}]
    assert (found["pkg:pypi/foo-bar@1.0%2Bx"]["version"]) == "1.0+x"
    (system,) = [part for part in document["components"] if part["type"] == "operating-system"]
    assert (system["name"], system["version"]) == ("debian", "13")


def test_spdx_names_packages_and_layers() -> None:
    document = json.loads(sbom.spdx(MADE, when=WHEN))
    assert document["spdxVersion"] == "SPDX-2.3"
    found = locators(document)
    assert set(found) == PURLS
    assert found["pkg:pypi/attrs@25.1.0"]["versionInfo"] == "25.1.0"
    assert found["pkg:pypi/attrs@25.1.0"]["sourceInfo"].endswith(MADE.layers["digest"].iloc[1])
    image = "SPDXRef-image"
    contained = {
        relation["relatedSpdxElement"]
        for relation in document["relationships"]
        if (relation["spdxElementId"], relation["relationshipType"]) == (image, "CONTAINS")
    }
    assert contained == {package["SPDXID"] for package in found.values()}


def test_both_name_the_image_by_its_digest() -> None:
    digest = MADE.image.manifest.digest
    purl = (
        f"pkg:oci/web@{digest.replace(':', '%3A')}"
        "?arch=amd64&repository_url=localhost:5/shop/web&tag=1.4"
    )
    whole = json.loads(sbom.cyclonedx(MADE))["metadata"]["component"]
    assert (whole["type"], whole["version"]) == ("container", digest)
    assert whole["purl"].replace("sha256:", "sha256%3A") == purl
    assert whole["hashes"] == [{"alg": "SHA-256", "content": digest.partition(":")[2]}]
    (image,) = [
        package
        for package in json.loads(sbom.spdx(MADE))["packages"]
        if package["SPDXID"] == "SPDXRef-image"
    ]
    assert (image["versionInfo"], image["primaryPackagePurpose"]) == (digest, "CONTAINER")
    assert image["checksums"][0]["checksumValue"] == digest.partition(":")[2]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("write", [sbom.cyclonedx, sbom.spdx])
def test_the_same_image_gives_the_same_text_but_for_the_time(write: Any) -> None:
    again = contents(DEBIAN, DISTRIBUTIONS)
    assert write(MADE, when=WHEN) == write(again, when=WHEN)
    later = write(again, when=datetime(2027, 1, 1, tzinfo=UTC))
    changed = [
        one
        for one, two in zip(write(MADE, when=WHEN).splitlines(), later.splitlines(), strict=True)
        if one != two
    ]
    assert len(changed) == 1
    assert "2026-11-23T08:30:15" in changed[0]


@pytest.mark.parametrize("write", [sbom.cyclonedx, sbom.spdx])
def test_another_image_gets_another_number(write: Any) -> None:
    key = "serialNumber" if write is sbom.cyclonedx else "documentNamespace"
    other = contents(DEBIAN)
    assert json.loads(write(MADE))[key] != json.loads(write(other))[key]


ODD = [
    pytest.param((DEBIAN, DISTRIBUTIONS), 5, id="a usual one"),
    pytest.param(({},), 0, id="an empty layer"),
    pytest.param((), 0, id="no layers"),
    pytest.param(({"etc/os-release": "NAME=odd\n"},), 0, id="a system without a name"),
    pytest.param(({"var/lib/dpkg/status": STATUS},), 3, id="packages of no known system"),
    pytest.param(
        (distribution("twice", "1"), distribution("twice", "1", folder="opt/venv/lib")),
        1,
        id="the same distribution twice",
    ),
    pytest.param(
        (distribution("two", "1"), distribution("two", "2", folder="opt/venv/lib")),
        2,
        id="two versions of one",
    ),
    pytest.param((distribution("naïve", "1 ümlaut"),), 1, id="a name beyond ASCII"),
    pytest.param(
        ({"etc/os-release": "ID=ubuntu\nVERSION_ID=24.04\n", "var/lib/dpkg/status": STATUS},),
        3,
        id="another distribution",
    ),
    pytest.param(
        (
            {
                "etc/os-release": "ID=alpine\nVERSION_ID=3.22.0\n",
                "lib/apk/db/installed": "P:musl\nV:1.2.5-r10\nA:x86_64\no:musl\n\n",
            },
        ),
        1,
        id="apk",
    ),
]


@pytest.mark.parametrize(("layers", "count"), ODD)
def test_cyclonedx_is_valid_whatever_the_image_holds(
    layers: tuple[Mapping[str, str], ...], count: int
) -> None:
    text = sbom.cyclonedx(contents(*layers))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert len(libraries(json.loads(text))) == count


@pytest.mark.parametrize(("layers", "count"), ODD)
def test_spdx_is_valid_whatever_the_image_holds(
    layers: tuple[Mapping[str, str], ...], count: int
) -> None:
    document = json.loads(sbom.spdx(contents(*layers)))
    messages = validate_full_spdx_document(JsonLikeDictParser().parse(document))
    assert [message.validation_message for message in messages] == []
    assert len(locators(document)) == count


@pytest.mark.parametrize(
    ("files", "purl"),
    [
        (
            {"etc/os-release": "ID=ubuntu\nVERSION_ID=24.04\n", "var/lib/dpkg/status": STATUS},
            "pkg:deb/ubuntu/tzdata@2025b-4%2Bdeb13u1?arch=all&distro=ubuntu-24.04",
        ),
        (
            {"var/lib/dpkg/status": STATUS},
            "pkg:deb/debian/tzdata@2025b-4%2Bdeb13u1?arch=all&distro=debian",
        ),
        (
            {
                "etc/os-release": "ID=alpine\nVERSION_ID=3.22.0\n",
                "lib/apk/db/installed": "P:ssl_client\nV:1.37.0-r18\nA:x86_64\no:busybox\n\n",
            },
            "pkg:apk/alpine/ssl_client@1.37.0-r18?arch=x86_64&distro=alpine-3.22.0&upstream=busybox",
        ),
    ],
)
def test_a_package_goes_by_its_distribution(files: dict[str, str], purl: str) -> None:
    document = json.loads(sbom.cyclonedx(contents(files)))
    assert purl in {part["purl"] for part in libraries(document)}
