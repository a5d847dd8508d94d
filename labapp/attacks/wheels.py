"""Wheels: one with other content under the same name and version, and the digests that tell.

Sources: the binary distribution format (PyPA), "The .dist-info directory" (RECORD); pip's
documentation, "Secure installs" (hash-checking mode).
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zipfile
from pathlib import Path

from labapp.errors import AttackError
from labapp.manifests import digest_of

_PIN = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*==\s*([^\s;#\\]+)")


def doctored(wheel: Path, code: str) -> bytes:
    """Return a wheel with code added to its package; name, version and RECORD fit.

    The same wheel and code always give the same bytes.

    Args:
        wheel: a wheel of pure Python.
        code: Python source, appended to the first package's ``__init__.py``.

    Raises:
        AttackError: the file is no wheel, or has no package.
    """
    target = io.BytesIO()
    try:
        with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(target, "w") as new:
            names = old.namelist()
            package = next((n for n in names if re.fullmatch(r"[^/]+/__init__\.py", n)), None)
            record = next((n for n in names if n.endswith(".dist-info/RECORD")), None)
            if package is None or record is None:
                raise zipfile.BadZipFile("there is no package in it")
            for name in names:
                content = old.read(name)
                if name == package:
                    content += f"\n\n{code}\n".encode()
                    changed = content
                elif name == record:
                    continue
                new.writestr(old.getinfo(name), content, zipfile.ZIP_DEFLATED)
            rows = list(csv.reader(io.StringIO(old.read(record).decode("utf-8"))))
            new.writestr(old.getinfo(record), _record(rows, package, changed))
    except (OSError, zipfile.BadZipFile) as error:
        raise AttackError(
            f"swapping the wheel '{wheel}': {error}. Take a copy of "
            "the application with its wheels: 'lab.application(fresh=True)'."
        ) from error
    return target.getvalue()


def hashed_requirements(requirements: Path, wheels: Path) -> str:
    """Return requirements with the digest of each one's wheels, as ``pip --require-hashes`` wants.

    The digests are those of the wheels that are in the folder now: trust is put in these, once, and
    any other file is refused from then on.

    Args:
        requirements: a file with one ``name==version`` a line; comments are kept.
        wheels: the folder of the wheels.

    Raises:
        AttackError: a file can't be read, a line pins no version, there is no wheel for it, or the
            requirements have digests already.
    """
    doing = f"hashing the requirements in '{requirements}'"
    try:
        lines = requirements.read_text(encoding="utf-8").splitlines()
        digests = [(*_name(file), digest_of(file.read_bytes())) for file in _wheels(wheels)]
    except OSError as error:
        raise AttackError(f"{doing}: {error.strerror or error}. Name the right file.") from error
    done = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            done.append(line)
            continue
        if "--hash" in line:
            raise AttackError(
                f"{doing}, line {number}: there are digests already. Keep them: they are of what "
                "you trusted then. To trust the wheels that are there now, take the digests out."
            )
        pinned = _PIN.match(line)
        if pinned is None:
            raise AttackError(
                f"{doing}, line {number}: '{line.strip()}' does not pin one version. Write "
                "'name==version'."
            )
        wanted = (_normal(pinned[1]), pinned[2])
        found = sorted(digest for name, version, digest in digests if (name, version) == wanted)
        if not found:
            raise AttackError(
                f"{doing}, line {number}: '{wheels}' has no wheel of {pinned[1]} {pinned[2]}. "
                "'python3 -m labapp start' fetches the wheels."
            )
        hashes = [f"    --hash={digest}" for digest in found]
        done.append(" \\\n".join([f"{pinned[1]}=={pinned[2]}", *hashes]))
    return "\n".join(done) + "\n"


def wheel_to_swap(requirements: Path, wheels: Path) -> Path:
    """Return the first wheel of pure Python that the requirements ask for.

    Raises:
        AttackError: there is none.
    """
    try:
        wanted = [
            pin
            for line in requirements.read_text("utf-8").splitlines()
            if (pin := _PIN.match(line))
        ]
        for pin in wanted:
            for file in _wheels(wheels):
                if _name(file) == (_normal(pin[1]), pin[2]) and file.stem.endswith("-none-any"):
                    return file
    except OSError as error:
        cause = f"{error.strerror or error}"
        raise AttackError(
            f"looking for a wheel to swap: '{requirements}': {cause}. Take a copy of the "
            "application first: 'lab.application()'."
        ) from error
    raise AttackError(
        f"looking for a wheel to swap: '{wheels}' has none that '{requirements}' asks for. "
        "'python3 -m labapp start' fetches the wheels; then take a copy of the application."
    )


def _wheels(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.whl"))


def _name(wheel: Path) -> tuple[str, str]:
    """Return the name and the version that a wheel's file name tells."""
    name, _, rest = wheel.name.partition("-")
    return _normal(name), rest.partition("-")[0]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _record(rows: list[list[str]], changed: str, content: bytes) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    for row in rows:
        fits = row and row[0] == changed
        writer.writerow([changed, f"sha256={digest}", str(len(content))] if fits else row)
    return text.getvalue()
