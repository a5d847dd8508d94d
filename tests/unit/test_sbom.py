"""Bills of materials: valid by their own libraries, whole, and the same for the same image."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from made_images import made

from labapp.inside import sbom

PACKAGE = "Package: {}\nStatus: install ok installed\nArchitecture: {}\nSource: {}\nVersion: {}\n\n"
STATUS = (
    PACKAGE.format("libstdc++6", "amd64", "gcc-14 (14.2.0-19)", "14.2.0-19+b1")
    + PACKAGE.format("tzdata", "all", "tzdata", "2025b-4+deb13u1")
    + PACKAGE.format("perl-base", "amd64", "perl", "5.40.1-6")
)
DEBIAN = {
    "etc/os-release": 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
    "var/lib/dpkg/status": STATUS,
}
TZDATA = "pkg:deb/{}tzdata@2025b-4%2Bdeb13u1?arch=all&distro={}"
PURLS = {
    "pkg:deb/debian/libstdc%2B%2B6@14.2.0-19%2Bb1"
    "?arch=amd64&distro=debian-13&upstream=gcc-14%4014.2.0-19",
    TZDATA.format("debian/", "debian-13"),
    "pkg:deb/debian/perl-base@5.40.1-6?arch=amd64&distro=debian-13&upstream=perl",
    "pkg:pypi/foo-bar@1.0%2Bx",
    "pkg:pypi/attrs@25.1.0",
}
APK = {"lib/apk/db/installed": "P:ssl_client\nV:1.37.0-r18\nA:x86_64\no:busybox\n\n"}
SSL = "pkg:apk/alpine/ssl_client@1.37.0-r18?arch=x86_64&distro=alpine-3.22.0&upstream=busybox"

Write = Callable[..., str]
WRITERS = pytest.mark.parametrize("write", [sbom.cyclonedx, sbom.spdx])


def distribution(name: str, version: str, folder: str = "usr/lib/python3") -> dict[str, str]:
    path = f"{folder}/{name.lower()}-{version}.dist-info/METADATA"
    return {path: f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}


DISTRIBUTIONS = distribution("Foo_Bar", "1.0+x") | distribution("attrs", "25.1.0")
MADE = made(DEBIAN, DISTRIBUTIONS)


def parts(write: Write, document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a document says of the image and its packages, by their URL."""
    if write is sbom.cyclonedx:
        found = [document["metadata"]["component"], *document["components"]]
        return {part["purl"]: part for part in found if part["type"] != "operating-system"}
    return {part["externalRefs"][0]["referenceLocator"]: part for part in document["packages"]}


@WRITERS
def test_the_image_and_its_packages_with_their_layers(write: Write) -> None:
    document = json.loads(write(MADE))
    found = parts(write, document)
    digest, (lower, upper) = MADE.image.manifest.digest, MADE.layers["digest"]
    image, *packages = found
    where = f"{digest}?arch=amd64&repository_url=r.test/shop/web&tag=1"
    assert image.replace("%3A", ":") == f"pkg:oci/web@{where}"
    assert "container" in json.dumps(found[image]).lower()
    assert set(packages) == PURLS
    for purl in packages:
        told = json.dumps(found[purl])
        assert (lower in told, upper in told) == ("deb" in purl, "pypi" in purl)
    attrs = found["pkg:pypi/attrs@25.1.0"]
    assert (attrs["name"], attrs.get("version", attrs.get("versionInfo"))) == ("attrs", "25.1.0")
    if write is sbom.cyclonedx:
        (system,) = (each for each in document["components"] if each["type"] != "library")
        assert (system["name"], system["version"]) == ("debian", "13")
    else:
        assert document["documentDescribes"] == [found[image]["SPDXID"]]
        assert [list(each.values()) for each in document["relationships"]] == [
            [found[image]["SPDXID"], "CONTAINS", found[purl]["SPDXID"]] for purl in packages
        ]


@WRITERS
def test_the_same_image_gives_the_same_document_but_for_the_time(write: Write) -> None:
    def timeless(*layers: Mapping[str, str]) -> str:
        text, times = re.subn(r'"\d{4}-[\dT:-]+Z"', "", write(made(*layers)))
        assert times == 1
        return text

    assert timeless(DEBIAN, DISTRIBUTIONS) == timeless(DEBIAN, DISTRIBUTIONS)
    ids = [re.findall(r"urn:uuid:[\w-]+", timeless(*each)) for each in ((), (DEBIAN,))]
    assert len(ids[0]) == 1 and ids[0] != ids[1]


@WRITERS
@pytest.mark.parametrize(
    ("layers", "count", "purl"),
    [
        ((DEBIAN, DISTRIBUTIONS), 5, "pkg:pypi/foo-bar@1.0%2Bx"),
        ((), 0, None),
        (({"etc/os-release": "NAME=odd\n"},), 0, None),
        (({"var/lib/dpkg/status": STATUS},), 3, TZDATA.format("debian/", "debian")),
        (
            (DEBIAN | {"etc/os-release": "ID=ubuntu\nVERSION_ID=24.04\n"},),
            3,
            TZDATA.format("ubuntu/", "ubuntu-24.04"),
        ),
        ((APK | {"etc/os-release": "ID=alpine\nVERSION_ID=3.22.0\n"},), 1, SSL),
        # The same distribution twice, and two versions of one.
        ((distribution("twice", "1"), distribution("twice", "1", "opt/lib")), 1, None),
        ((distribution("two", "1"), distribution("two", "2", "opt/lib")), 2, None),
        ((distribution("naïve", "1 ümlaut"),), 1, None),
        ((distribution("evil\x9b", "1\x1b[31m"),), 1, None),
    ],
)
def test_documents_are_valid_whatever_the_image_holds(
    layers: tuple[Mapping[str, str], ...], count: int, purl: str | None, write: Write
) -> None:
    # Seconds to import, and only the process that gets this file needs them.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
    from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

    # Half a character in its config breaks nothing either.
    run = {"User": "\ud800", "Labels": {"a": "\udcff"}}
    text = write(made(*layers, run=run))
    assert text.encode("utf-8")
    document = json.loads(text)
    if write is sbom.cyclonedx:
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    else:
        assert validate_full_spdx_document(JsonLikeDictParser().parse(document)) == []
    found = parts(write, document)
    assert len(found) == count + 1
    assert purl is None or purl in found
