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

from labapp.errors import printable
from labapp.inside.image import Contents

_PURL = {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl"}


def cyclonedx(contents: Contents) -> str:
    """Write an image's packages as CycloneDX 1.6 JSON; all but the time is of the image alone."""
    digest = contents.image.manifest.digest
    components: list[dict[str, Any]] = [
        {
            "type": "library" if layer else "container",
            "bom-ref": purl,
            "name": name,
            "version": version,
            "purl": purl,
            "properties": [{"name": "labapp:layer", "value": layer}] if layer else [],
        }
        for purl, name, version, layer in _parts(contents)
    ]
    if contents.os_release:
        # Without the distribution a scanner can't know whose fixes to look for.
        name, version = (contents.os_release.get(key, "") for key in ("ID", "VERSION_ID"))
        kind = {"type": "operating-system", "bom-ref": "os"}
        components.append(kind | {"name": name or "linux", "version": version})
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"cyclonedx:{digest}").urn,
        "version": 1,
        "metadata": {
            "timestamp": _now(),
            "tools": {"components": [{"type": "application", "name": "labapp"}]},
            "component": components[0],
        },
        "components": components[1:],
    }
    return json.dumps(document, indent=2) + "\n"


def spdx(contents: Contents) -> str:
    """Write an image's packages as SPDX 2.3 JSON; all but the time is of the image alone."""
    digest = contents.image.manifest.digest
    packages: list[dict[str, Any]] = [
        {
            "SPDXID": f"SPDXRef-{number}",
            "name": name,
            "versionInfo": version,
            "primaryPackagePurpose": "LIBRARY" if layer else "CONTAINER",
            "sourceInfo": f"came with the layer {layer}" if layer else "the image",
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": False,
            "externalRefs": [_PURL | {"referenceLocator": purl}],
        }
        for number, (purl, name, version, layer) in enumerate(_parts(contents))
    ]
    document = {
        "SPDXID": "SPDXRef-DOCUMENT",
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "name": f"{contents.image.reference.name}@{digest}",
        "documentNamespace": uuid.uuid5(uuid.NAMESPACE_URL, f"spdx:{digest}").urn,
        "creationInfo": {"created": _now(), "creators": ["Tool: labapp"]},
        "documentDescribes": ["SPDXRef-0"],
        "packages": packages,
        "relationships": [
            {
                "spdxElementId": "SPDXRef-0",
                "relationshipType": "CONTAINS",
                "relatedSpdxElement": package["SPDXID"],
            }
            for package in packages[1:]
        ],
    }
    return json.dumps(document, indent=2) + "\n"


def _parts(contents: Contents) -> list[tuple[str, str, str, str]]:
    """Return URL, name, version and layer of the image (which has none) and of its packages.

    Each is there once: a Python package may be installed twice.
    """
    reference, image = contents.image.reference, contents.image
    # Named by the manifest that was read: of an index, that of the one platform.
    digest, name = image.manifest.digest, reference.repository.rpartition("/")[2]
    qualifiers = {
        "repository_url": f"{reference.registry}/{reference.repository}",
        "arch": image.config.platform.architecture,
        "tag": reference.tag or "",
    }
    purl = str(PackageURL("oci", None, name, digest, qualifiers))
    parts = {purl: (purl, reference.name, digest, "")}
    layers = dict(zip(contents.layers["number"], contents.layers["digest"], strict=True))
    system = {name: printable(text) for name, text in contents.os_release.items()}
    rows = contents.packages.sort_values(["kind", "name", "version", "architecture"], kind="stable")
    for row in rows.to_dict("records"):
        texts = {str(key): printable(str(value)) for key, value in row.items()}
        purl = _purl(texts, system)
        parts.setdefault(purl, (purl, texts["name"], texts["version"], layers[row["layer"]]))
    return list(parts.values())


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
