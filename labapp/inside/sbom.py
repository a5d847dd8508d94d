"""A bill of materials: an image's packages in the two formats that scanners and registries read.

Each package goes by its package URL (https://github.com/package-url/purl-spec), which also names
its source package, as that is what distributions publish their fixes for.

Sources: CycloneDX 1.6 (ECMA-424); SPDX 2.3 (clauses 6 to 11).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from packageurl import PackageURL

from labapp.inside.image import Contents
from labapp.registry.strangers import printable


def cyclonedx(contents: Contents) -> str:
    """Write an image's packages as CycloneDX 1.6 JSON; all but the time is of the image alone."""
    purl, digest = _image_purl(contents), contents.image.manifest.digest
    image = {
        "type": "container",
        "bom-ref": purl,
        "name": contents.image.reference.name,
        "version": digest,
        "hashes": [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}],
        "purl": purl,
    }
    packages = [
        {
            "type": "library",
            "bom-ref": url,
            "name": package["name"],
            "version": package["version"],
            "purl": url,
            "properties": [{"name": "labapp:layer", "value": package["digest"]}],
        }
        for url, package in _packages(contents).items()
    ]
    # Without the distribution a scanner can't know whose fixes to look for.
    name, version = (contents.os_release.get(key, "") for key in ("ID", "VERSION_ID"))
    system = {
        "type": "operating-system",
        "bom-ref": f"os:{name}-{version}",
        "name": name or "linux",
        "version": version,
    }
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"cyclonedx:{digest}").urn,
        "version": 1,
        "metadata": {
            "timestamp": _now(),
            "tools": {"components": [{"type": "application", "name": "labapp"}]},
            "component": image,
        },
        "components": [*([system] if contents.os_release else []), *packages],
    }
    return json.dumps(document, indent=2) + "\n"


def spdx(contents: Contents) -> str:
    """Write an image's packages as SPDX 2.3 JSON; all but the time is of the image alone."""
    name, digest = contents.image.reference.name, contents.image.manifest.digest
    image = _spdx_package("SPDXRef-image", name, digest, _image_purl(contents)) | {
        "checksums": [{"algorithm": "SHA256", "checksumValue": digest.removeprefix("sha256:")}],
        "primaryPackagePurpose": "CONTAINER",
    }
    packages = [
        _spdx_package(f"SPDXRef-package-{number}", package["name"], package["version"], url)
        | {"sourceInfo": f"came with the layer {package['digest']}"}
        for number, (url, package) in enumerate(_packages(contents).items(), 1)
    ]
    relations = [
        ("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image"),
        *(("SPDXRef-image", "CONTAINS", package["SPDXID"]) for package in packages),
    ]
    document = {
        "SPDXID": "SPDXRef-DOCUMENT",
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "name": f"{name}@{digest}",
        "documentNamespace": uuid.uuid5(uuid.NAMESPACE_URL, f"spdx:{digest}").urn,
        "creationInfo": {"created": _now(), "creators": ["Tool: labapp"]},
        "packages": [image, *packages],
        "relationships": [
            {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}
            for one, kind, other in relations
        ],
    }
    return json.dumps(document, indent=2) + "\n"


def _spdx_package(identity: str, name: str, version: str, purl: str) -> dict[str, Any]:
    kind = {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl"}
    return {
        "SPDXID": identity,
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "externalRefs": [kind | {"referenceLocator": purl}],
    }


def _image_purl(contents: Contents) -> str:
    """Name the image by the manifest that was read: of an index, that of the one platform."""
    reference = contents.image.reference
    qualifiers = {
        "repository_url": f"{reference.registry}/{reference.repository}",
        "arch": contents.image.config.platform.architecture,
        "tag": reference.tag or "",
    }
    name, digest = reference.repository.rpartition("/")[2], contents.image.manifest.digest
    return str(PackageURL("oci", None, name, digest, qualifiers))


def _packages(contents: Contents) -> dict[str, dict[str, str]]:
    """Return the packages by their URL, each once: a Python package may be there twice."""
    layers = dict(zip(contents.layers["number"], contents.layers["digest"], strict=True))
    rows = contents.packages.sort_values(["kind", "name", "version", "architecture"], kind="stable")
    system = {name: printable(text) for name, text in contents.os_release.items()}
    found: dict[str, dict[str, str]] = {}
    for row in rows.to_dict("records"):
        texts = {str(key): printable(str(value)) for key, value in row.items()}
        found.setdefault(_purl(texts, system), texts | {"digest": layers[row["layer"]]})
    return found


def _purl(row: Mapping[str, str], os_release: Mapping[str, str]) -> str:
    kind, name, version, upstream = row["kind"], row["name"], row["version"], row["source"]
    if kind == "python":
        return str(PackageURL("pypi", None, name, version))
    distribution = os_release.get("ID") or {"deb": "debian", "apk": "alpine"}[kind]
    if row["source_version"] != version:
        upstream += f"@{row['source_version']}"
    qualifiers = {
        "arch": row["architecture"],
        "distro": "-".join(filter(None, [distribution, os_release.get("VERSION_ID")])),
        "upstream": upstream if upstream != name else "",
    }
    return str(PackageURL(kind, distribution, name, version, qualifiers))


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
