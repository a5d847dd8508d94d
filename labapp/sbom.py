"""A bill of materials: an image's packages in the two formats that scanners and registries read.

Each package goes by its package URL (https://github.com/package-url/purl-spec), which also names
its source package, as that is what distributions publish their fixes for.

Sources: CycloneDX 1.6 (ECMA-424); SPDX 2.3 (clauses 6 to 11).
"""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.dependency import Dependency
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from spdx_tools.spdx.model.actor import Actor, ActorType
from spdx_tools.spdx.model.checksum import Checksum, ChecksumAlgorithm
from spdx_tools.spdx.model.document import CreationInfo, Document
from spdx_tools.spdx.model.package import (
    ExternalPackageRef,
    ExternalPackageRefCategory,
    Package,
    PackagePurpose,
)
from spdx_tools.spdx.model.relationship import Relationship, RelationshipType
from spdx_tools.spdx.model.spdx_no_assertion import SpdxNoAssertion
from spdx_tools.spdx.writer.json.json_writer import write_document_to_stream

from labapp.contents import Contents

LAYER_PROPERTY = "labapp:layer"
"""The property of a CycloneDX component that holds the digest of the layer that it came with."""

_DISTRIBUTIONS = {"deb": "debian", "apk": "alpine"}
_MAKER = "labapp"


def cyclonedx(contents: Contents, *, when: datetime | None = None) -> str:
    """Write an image's packages as CycloneDX 1.6 JSON.

    Args:
        contents: of the image.
        when: the time to put into it; by default now. All else depends on the image alone.
    """
    image = _image(contents)
    whole = Component(
        name=image.name,
        version=image.digest,
        type=ComponentType.CONTAINER,
        purl=image.purl,
        bom_ref=str(image.purl),
        hashes=_hashes(image.digest),
    )
    parts = [_operating_system(contents)] if contents.os_release else []
    parts += [
        Component(
            name=entry.name,
            version=entry.version,
            type=ComponentType.LIBRARY,
            purl=entry.purl,
            bom_ref=str(entry.purl),
            properties=[Property(name=LAYER_PROPERTY, value=entry.layer)] if entry.layer else (),
        )
        for entry in _entries(contents)
    ]
    bom = Bom(
        components=parts,
        serial_number=_identity(image.digest, "cyclonedx"),
        metadata=BomMetaData(
            component=whole,
            timestamp=_moment(when),
            tools=ToolRepository(
                components=[Component(name=_MAKER, type=ComponentType.APPLICATION, bom_ref=_MAKER)]
            ),
        ),
        dependencies=[
            Dependency(whole.bom_ref, [Dependency(part.bom_ref) for part in parts]),
            *(Dependency(part.bom_ref) for part in parts),
        ],
    )
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def spdx(contents: Contents, *, when: datetime | None = None) -> str:
    """Write an image's packages as SPDX 2.3 JSON.

    Args:
        contents: of the image.
        when: the time to put into it; by default now. All else depends on the image alone.
    """
    image = _image(contents)
    whole = Package(
        "SPDXRef-image",
        image.name,
        SpdxNoAssertion(),
        version=image.digest,
        files_analyzed=False,
        checksums=[_checksum(image.digest)],
        primary_package_purpose=PackagePurpose.CONTAINER,
        external_references=[_locator(image.purl)],
    )
    packages = [
        Package(
            f"SPDXRef-{_slug(f'{entry.purl.type}-{entry.name}')}-{number}",
            entry.name,
            SpdxNoAssertion(),
            version=entry.version,
            files_analyzed=False,
            source_info=f"came with the layer {entry.layer}" if entry.layer else None,
            external_references=[_locator(entry.purl)],
        )
        for number, entry in enumerate(_entries(contents), 1)
    ]
    creation = CreationInfo(
        spdx_version="SPDX-2.3",
        spdx_id="SPDXRef-DOCUMENT",
        name=f"{image.name}@{image.digest}",
        document_namespace=_identity(image.digest, "spdx").urn,
        creators=[Actor(ActorType.TOOL, _MAKER)],
        created=_moment(when),
    )
    contained = RelationshipType.CONTAINS
    document = Document(
        creation,
        packages=[whole, *packages],
        relationships=[
            Relationship("SPDXRef-DOCUMENT", RelationshipType.DESCRIBES, whole.spdx_id),
            *(Relationship(whole.spdx_id, contained, package.spdx_id) for package in packages),
        ],
    )
    out = io.StringIO()
    # The library's own check takes longer than all the rest; the tests do it instead.
    write_document_to_stream(document, out, validate=False, drop_duplicates=False)
    return out.getvalue() + "\n"


@dataclass(frozen=True)
class _Image:
    name: str
    digest: str
    purl: PackageURL


@dataclass(frozen=True)
class _Entry:
    name: str
    version: str
    purl: PackageURL
    layer: str


def _image(contents: Contents) -> _Image:
    """Name the image by the manifest that was read: of an index, that of the one platform."""
    reference, digest = contents.image.reference, contents.image.manifest.digest
    last = reference.repository.rpartition("/")[2]
    qualifiers = {
        "repository_url": f"{reference.registry}/{reference.repository}",
        "arch": contents.image.config.platform.architecture,
        **({"tag": reference.tag} if reference.tag else {}),
    }
    return _Image(reference.name, digest, PackageURL("oci", None, last, digest, qualifiers))


def _entries(contents: Contents) -> Iterator[_Entry]:
    """Yield the packages by their URL, each once: a Python package may be there twice."""
    layers = dict(zip(contents.layers["number"], contents.layers["digest"], strict=True))
    rows = contents.packages.sort_values(["kind", "name", "version", "architecture"], kind="stable")
    seen: set[str] = set()
    for row in rows.to_dict("records"):
        purl = _purl(row, contents.os_release)
        if str(purl) not in seen:
            seen.add(str(purl))
            layer = str(layers.get(row["layer"], ""))
            yield _Entry(str(row["name"]), str(row["version"]), purl, layer)


def _purl(row: dict[Any, Any], os_release: Any) -> PackageURL:
    kind, name, version = str(row["kind"]), str(row["name"]), str(row["version"])
    if kind not in _DISTRIBUTIONS:
        return PackageURL({"python": "pypi"}.get(kind, "generic"), None, name, version)
    distribution = os_release.get("ID") or _DISTRIBUTIONS[kind]
    release = os_release.get("VERSION_ID")
    source, source_version = str(row["source"] or ""), str(row["source_version"] or "")
    upstream = source if source_version in ("", version) else f"{source}@{source_version}"
    qualifiers = {
        "arch": str(row["architecture"] or ""),
        "distro": f"{distribution}-{release}" if release else distribution,
        "upstream": upstream if upstream != name else "",
    }
    kept = {key: value for key, value in qualifiers.items() if value}
    return PackageURL(kind, distribution, name, version, kept)


def _operating_system(contents: Contents) -> Component:
    """Tell the distribution, without which a scanner can't know whose fixes to look for."""
    told = contents.os_release
    name = told.get("ID") or "linux"
    return Component(
        name=name,
        version=told.get("VERSION_ID"),
        description=told.get("PRETTY_NAME"),
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref=f"os:{name}-{told.get('VERSION_ID', '')}",
    )


def _identity(digest: str, form: str) -> uuid.UUID:
    """Return the document's number, which is the same for the same image."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{form}:{digest}")


def _moment(when: datetime | None) -> datetime:
    return (when or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)


def _hashes(digest: str) -> list[HashType]:
    algorithm, _, value = digest.partition(":")
    return [HashType(alg=HashAlgorithm(algorithm.replace("sha", "SHA-")), content=value)]


def _checksum(digest: str) -> Checksum:
    algorithm, _, value = digest.partition(":")
    return Checksum(ChecksumAlgorithm[algorithm.upper()], value)


def _locator(purl: PackageURL) -> ExternalPackageRef:
    return ExternalPackageRef(ExternalPackageRefCategory.PACKAGE_MANAGER, "purl", str(purl))


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", text)
