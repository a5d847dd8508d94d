"""Forged images and wheels: the same name, and something more in it.

A forged image has one more layer, put together without any engine. What it adds is harmless and
easy to find: every Python program of the image prints, when it starts, what was put there. The same
input always gives the same digest.

Sources: OCI Image Specification 1.1 (manifest.md, config.md, layer.md); pip, "Secure installs"
(hash-checking mode).
"""

from __future__ import annotations

import gzip
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
from labapp.registry.manifests import Manifest, canonical_json, digest_of, parse_manifest

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
    layer: str
    diff_id: str
    blobs: tuple[bytes, ...]

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
    """Return an image with a layer more, as the engine would run it, made for an occasion."""
    held = bench.registry.image(reference)
    words = f"planted in '{reference.repository}'{f' for {occasion}' if occasion else ''}"
    code = startup_code(attack, words) + "\n"
    plain = tar_of(dict.fromkeys(_STARTS, code.encode()))
    # Without a time and a name in its header, the same bytes come out each time.
    packed = gzip.compress(plain, mtime=0)
    layer, diff_id = digest_of(packed), digest_of(plain)
    image: dict[str, Any] = json.loads(held.config.raw)
    image["rootfs"]["diff_ids"].append(diff_id)
    image.setdefault("history", []).append({"created_by": f"COPY updates / # {marker(attack)}"})
    config = canonical_json(image)
    manifest: dict[str, Any] = json.loads(held.manifest.raw)
    manifest["config"] |= {"digest": digest_of(config), "size": len(config)}
    below = manifest["layers"][0]
    manifest["layers"].append(below | {"digest": layer, "size": len(packed)})
    made = parse_manifest(canonical_json(manifest), held.manifest.media_type)
    assert isinstance(made, Manifest)
    return Forged(reference.repository, made, layer, diff_id, (packed, config))


def doctored(wheel: Path, code: str) -> bytes:
    """Return a wheel with code added to its package; name and version stay."""
    target = io.BytesIO()
    try:
        with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(target, "w") as new:
            package = [n for n in old.namelist() if re.fullmatch(r"[^/]+/__init__\.py", n)][:1]
            if not package:
                raise zipfile.BadZipFile("there is no package in it")
            for entry in old.infolist():
                added = f"\n\n{code}\n".encode() if entry.filename in package else b""
                new.writestr(entry, old.read(entry) + added, zipfile.ZIP_DEFLATED)
    except (OSError, zipfile.BadZipFile) as error:
        raise AttackError(f"swapping the wheel '{wheel}': {error}. {_FRESH}") from error
    return target.getvalue()


def wheel_to_swap(requirements: Path, wheels: Path) -> Path:
    """Return the first wheel of pure Python that the requirements ask for."""
    doing = f"looking in '{wheels}' for a wheel to swap, by '{requirements}'"
    for pin in filter(None, map(_PIN.match, _read(requirements, doing))):
        for file in _wheels_of(pin, wheels):
            if file.stem.endswith("-none-any"):
                return file
    raise AttackError(f"{doing}: there is none. {_FRESH}")


def hashed_requirements(requirements: Path, wheels: Path) -> str:
    """Return requirements with the digests of their wheels, as ``pip --require-hashes`` wants."""
    doing = f"hashing the requirements in '{requirements}'"
    done = []
    for number, line in enumerate(_read(requirements, doing), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            done.append(line)
            continue
        pin = _PIN.match(line)
        found = _wheels_of(pin, wheels) if pin else []
        if pin is None or not found or "--hash" in line:
            raise AttackError(
                f"{doing}, line {number}: '{line.strip()}' is no 'name==version' with a wheel in "
                f"'{wheels}', or has a digest already, of what you trusted then. {_FRESH}"
            )
        hashes = sorted(f"    --hash={digest_of(file.read_bytes())}" for file in found)
        done.append(" \\\n".join([f"{pin[1]}=={pin[2]}", *hashes]))
    return "\n".join(done) + "\n"


def _read(requirements: Path, doing: str) -> list[str]:
    try:
        return requirements.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise AttackError(f"{doing}: {error.strerror or error}. {_FRESH}") from error


def _wheels_of(pin: re.Match[str], folder: Path) -> list[Path]:
    """Return the wheels in a folder that are, by their names, of what is pinned."""
    found = []
    for file in sorted(folder.glob("*.whl")):
        name, version, *_ = file.name.split("-")
        if version == pin[2] and normal_name(name) == normal_name(pin[1]):
            found.append(file)
    return found


def normal_name(name: str) -> str:
    """Return the name of a package as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
