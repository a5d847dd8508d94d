"""Collect what a Python program needs to run, and nothing else.

    python3 collect.py ROOT ENVIRONMENT

copies into the folder ROOT, each file at its own path: the interpreter that runs this script, its
standard library, and the shared libraries that those and the compiled modules in ENVIRONMENT load.
minimal.Dockerfile makes an image of that folder. Where the files come from Debian packages, ROOT
also says which ones, as an image without this note would look to a scanner as if it had none.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

DPKG = Path("/var/lib/dpkg")

# What a service never imports: tests, programs with windows, programs for a terminal, old kinds of
# databases, and what installs packages. Everything else in the standard library stays.
LEFT_OUT = re.compile(
    r"_?(xx)?test.*|_ctypes_test|xx.*|idlelib|_?tkinter|turtle.*"
    r"|_?curses.*|_pyrepl|readline|rlcompleter|pydoc_data|_g?dbm"
    r"|ensurepip|venv|site-packages|dist-packages|config-.*"
)


class Root:
    """The folder that becomes an image."""

    def __init__(self, folder):
        self.folder = folder
        self.copied = set()

    def add(self, path):
        """Copy a file, and the symbolic links that lead to it."""
        place = Path("/")
        for part in path.parts[1:]:
            place /= part
            if place.is_symlink():
                target = place.parent / place.readlink()
                self._copy(place)
                return self.add(Path(os.path.normpath(target / path.relative_to(place))))
        if path not in self.copied:
            self._copy(path)
        return path

    def _copy(self, path):
        new = self.folder / path.relative_to("/")
        if not new.is_symlink():
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, new, follow_symlinks=False)
        self.copied.add(path)

    def write(self, path, text):
        """Write a file that the image this runs in does not have."""
        new = self.folder / path.relative_to("/")
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text)


def standard_library():
    """Return the files of the standard library that stay."""
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*")):
        # The module or package: "json" of json/decoder.py, "_ssl" of lib-dynload/_ssl.….so.
        parts = path.relative_to(folder).parts
        name = next((part for part in parts if part not in ("__pycache__", "lib-dynload")), "")
        if path.is_file() and not LEFT_OUT.fullmatch(name.partition(".")[0]):
            yield path


def libraries(program):
    """Return the shared libraries that a program loads, and the names of those not to be found."""
    answer = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    found = re.findall(r"^\s*(?:\S+ => )?(/\S+) \(0x", answer, re.MULTILINE)
    missing = re.findall(r"(\S+) => not found", answer)
    return [Path(os.path.normpath(path)) for path in found], missing


def collect(root, environment):
    """Copy the interpreter, the standard library, and all shared libraries."""
    interpreter = root.add(Path(sys.executable))
    for link in (environment / "bin").iterdir():
        if link.is_symlink() and link.readlink().is_absolute():
            root.add(link.readlink())  # the name by which the environment calls Python

    loaded = set(libraries(interpreter)[0])
    for path in standard_library():
        if path.suffix == ".so":
            found, missing = libraries(path)
            if missing:
                print(f"left out: {path.name}, as this image has no {', '.join(missing)}")
                continue
            loaded.update(found)
        root.add(path)
    for path in environment.rglob("*.so*"):
        found, missing = libraries(path)
        if missing:
            raise SystemExit(f"{path} needs {', '.join(missing)}, which this image has not.")
        loaded.update(found)
    # The C library loads this one by itself, when a thread ends; no file asks for it.
    for path in list(loaded):
        loaded.update(path.parent.glob("libgcc_s.so.1"))
    for path in loaded:
        if not path.is_relative_to(environment):
            root.add(path)
    # How the C library looks up names; without it, not even "localhost" is found for sure.
    if Path("/etc/nsswitch.conf").exists():
        root.add(Path("/etc/nsswitch.conf"))


def note_packages(root):
    """Say in ROOT which Debian packages its files come from, where scanners look for it.

    A file a package in status.d, as the "distroless" images have it.
    """
    # Which release this is, and where its fixes are published.
    for path in (Path("/etc/os-release"), *Path("/etc/apt").glob("sources.list*")):
        for file in [path, *path.glob("*")] if path.is_dir() else [path]:
            if file.is_file():
                root.add(file)
    owners = {}
    for listing in (DPKG / "info").glob("*.list"):
        for line in listing.read_text().splitlines():
            owners[real(line)] = listing.stem
    packages = {owners[path] for path in map(real, root.copied) if path in owners}
    # Licences travel with the software.
    for package in sorted(packages):
        notice = Path("/usr/share/doc", package.partition(":")[0], "copyright")
        if notice.is_file():
            packages.add(owners.get(real(root.add(notice)), package))
    there = set(map(real, root.copied))
    for stanza in (DPKG / "status").read_text().split("\n\n"):
        fields = dict(re.findall(r"^(Package|Architecture): (.+)$", stanza, re.MULTILINE))
        name = fields.get("Package", "")
        for package in {name, f"{name}:{fields.get('Architecture')}"} & packages:
            sums = DPKG / "info" / f"{package}.md5sums"
            lines = sums.read_text().splitlines() if sums.exists() else []
            kept = [line for line in lines if real("/" + line[34:]) in there]
            root.write(DPKG / "status.d" / name, stanza.strip("\n") + "\n")
            root.write(DPKG / "status.d" / f"{name}.md5sums", "".join(f"{it}\n" for it in kept))


def real(path):
    """Return where a path leads when links in its folders are followed, as in /lib -> /usr/lib."""
    path = Path(path)
    return _real_folder(path.parent) / path.name


@functools.cache
def _real_folder(folder):
    return folder.resolve()


if __name__ == "__main__":
    root = Root(Path(sys.argv[1]))
    collect(root, Path(sys.argv[2]))
    if DPKG.exists():
        note_packages(root)
    print(f"{len(root.copied):,} files")
