"""Forged images and wheels: the same name, and something more in it.

A forged image has one more layer, put together over HTTP, without any engine. What it adds is
harmless and easy to find: a file that says what it is, and a line that every Python program of the
image prints when it starts. The same input always gives the same digest.

Sources: OCI Image Specification 1.1 (manifest.md, config.md, layer.md); the binary distribution
format (PyPA), "The .dist-info directory" (RECORD); pip, "Secure installs" (hash-checking mode).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labapp.bench import Bench
from labapp.errors import AttackError
from labapp.journey.debian import PYTHON
from labapp.machine.engine import tar_of
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.manifests import (
    DOCKER_MANIFEST,
    OCI_LAYER,
    Manifest,
    Platform,
    canonical_json,
    digest_of,
    parse_manifest,
)

DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

NOTE = "opt/backdoor/README.txt"
"""The file in a forged image that says what it is."""

# Python reads such a file by itself at each start; where it looks depends on who packaged it.
_STARTS = tuple(f"usr/{place}lib/python{PYTHON}/sitecustomize.py" for place in ("", "local/"))

_FRESH = (
    "Take a new copy of the application: 'lab.application(fresh=True)'. Its wheels are fetched by "
    "'python3 -m labapp start'."
)

_PIN = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*==\s*([^\s;#\\]+)")


@dataclass(frozen=True)
class Forged:
    """An image with a layer too many, and the blobs that the registry does not have yet."""

    repository: str
    manifest: Manifest
    diff_id: str
    blobs: tuple[bytes, ...]

    @property
    def layer(self) -> str:
        """The digest of the layer that was added."""
        return self.manifest.layers[-1].digest

    def upload(self, registry: Registry, identifier: str) -> None:
        """Store it in a registry, under a tag or its own digest."""
        for blob in self.blobs:
            registry.upload_blob(self.repository, [blob])
        manifest = self.manifest
        registry.put_manifest(self.repository, identifier, manifest.raw, manifest.media_type)


def marker(attack: str) -> str:
    """Return the text by which what an attack planted is found again."""
    return f"LABAPP-PLANTED-{attack.upper()}"


def startup_code(attack: str, words: str) -> str:
    """Return the line of Python that tells that planted code runs."""
    text = f"BACKDOOR (harmless, {marker(attack)}): {words}; a real one would say nothing."
    return f"import sys; print({text!r}, file=sys.stderr, flush=True)"


def forge(bench: Bench, reference: Reference, attack: str, *, occasion: str = "") -> Forged:
    """Return an image with one layer more, as this lab's engine would run it; nothing is stored.

    An occasion goes into the layer, so that its digest is that of this occasion only.
    """
    held = bench.registry.image(reference, platform=Platform.parse(bench.engine.platform))
    words = f"planted in '{reference.repository}'{f' for {occasion}' if occasion else ''}"
    code = startup_code(attack, words) + "\n"
    note = f"{marker(attack)}\nPut here by an attack of the lab. It does nothing.\n"
    plain = tar_of({NOTE: note.encode(), **dict.fromkeys(_STARTS, code.encode())})
    # Without a time and a name in its header, the same bytes come out each time.
    packed, diff_id = gzip.compress(plain, mtime=0), digest_of(plain)
    image: dict[str, Any] = json.loads(held.config.raw)
    image["rootfs"]["diff_ids"].append(diff_id)
    image.setdefault("history", []).append({"created_by": f"COPY updates / # {marker(attack)}"})
    config = canonical_json(image)
    manifest: dict[str, Any] = json.loads(held.manifest.raw)
    is_docker = held.manifest.media_type == DOCKER_MANIFEST
    media_type = DOCKER_LAYER if is_docker else OCI_LAYER
    manifest["config"] |= {"digest": digest_of(config), "size": len(config)}
    manifest["layers"].append(
        {"mediaType": media_type, "size": len(packed), "digest": digest_of(packed)}
    )
    made = parse_manifest(canonical_json(manifest), held.manifest.media_type)
    assert isinstance(made, Manifest)
    return Forged(reference.repository, made, diff_id, (packed, config))


def doctored(wheel: Path, code: str) -> bytes:
    """Return a wheel with code added to its package; name, version and RECORD fit."""
    target = io.BytesIO()
    try:
        with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(target, "w") as new:
            contents = {name: old.read(name) for name in old.namelist()}
            package = next((n for n in contents if re.fullmatch(r"[^/]+/__init__\.py", n)), None)
            record = next((n for n in contents if n.endswith(".dist-info/RECORD")), None)
            if package is None or record is None:
                raise zipfile.BadZipFile("there is no package in it")
            contents[package] += f"\n\n{code}\n".encode()
            digest = base64.urlsafe_b64encode(hashlib.sha256(contents[package]).digest())
            row = f"{package},sha256={digest.decode().rstrip('=')},{len(contents[package])}"
            beginning = re.escape(package).encode()
            contents[record] = re.sub(b"(?m)^%b,.*$" % beginning, row.encode(), contents[record])
            for name, content in contents.items():
                new.writestr(old.getinfo(name), content, zipfile.ZIP_DEFLATED)
    except (OSError, zipfile.BadZipFile) as error:
        raise AttackError(f"swapping the wheel '{wheel}': {error}. {_FRESH}") from error
    return target.getvalue()


def wheel_to_swap(requirements: Path, wheels: Path) -> Path:
    """Return the first wheel of pure Python that the requirements ask for."""
    doing = f"looking in '{wheels}' for a wheel to swap, by '{requirements}'"
    lines, there = _read(requirements, wheels, doing)
    for pin in filter(None, map(_PIN.match, lines)):
        for file in there:
            if file.stem.endswith("-none-any") and _is_of(file, pin):
                return file
    raise AttackError(f"{doing}: there is none. {_FRESH}")


def hashed_requirements(requirements: Path, wheels: Path) -> str:
    """Return requirements with the digest of each one's wheels, as ``pip --require-hashes`` wants.

    The digests are those of the wheels that are in the folder now: trust is put in these, once, and
    any other file is refused from then on.
    """
    doing = f"hashing the requirements in '{requirements}'"
    lines, there = _read(requirements, wheels, doing)
    done = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            done.append(line)
            continue
        pinned, problem = _PIN.match(line), ""
        found = [file for file in there if pinned and _is_of(file, pinned)]
        if "--hash" in line:
            problem = (
                "there are digests already. Keep them: they are of what you trusted then. To "
                "trust the wheels that are there now, take the digests out."
            )
        elif pinned is None:
            problem = f"'{line.strip()}' does not pin one version. Write 'name==version'."
        elif not found:
            problem = f"'{wheels}' has no wheel of {pinned[1]} {pinned[2]}. {_FRESH}"
        if pinned is None or problem:
            raise AttackError(f"{doing}, line {number}: {problem}")
        hashes = sorted(f"    --hash={digest_of(file.read_bytes())}" for file in found)
        done.append(" \\\n".join([f"{pinned[1]}=={pinned[2]}", *hashes]))
    return "\n".join(done) + "\n"


def _read(requirements: Path, wheels: Path, doing: str) -> tuple[list[str], list[Path]]:
    """Return the lines of some requirements, and all the wheels that lie in a folder."""
    try:
        lines = requirements.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise AttackError(f"{doing}: {error.strerror or error}. {_FRESH}") from error
    return lines, sorted(wheels.glob("*.whl"))


def _is_of(wheel: Path, pin: re.Match[str]) -> bool:
    """Tell whether a wheel, by its file name, is of the name and the version that are pinned."""
    name, version, *_ = wheel.name.split("-")
    return version == pin[2] and _normal(name) == _normal(pin[1])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
