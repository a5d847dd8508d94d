"""Packages into a virtual environment: by uv, with the settings that pip has here; else by pip.

Only the standard library is used here: nothing is installed yet.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "timeout": "UV_HTTP_TIMEOUT",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}
"""What uv calls those of pip's settings that lead to an index."""

COMMA_SEPARATED = {"UV_FIND_LINKS"}


class SetUpError(Exception):
    """The environment can't be made; the text says what to do."""


def python_of(venv: Path) -> Path:
    """Return the path of an environment's Python."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(venv: Path, project: str, *, again: bool = False) -> None:
    """Install a project into an environment, in a way that its files can be edited in place.

    Args:
        venv: the environment's folder.
        project: the project's folder, with ``[extras]`` behind it if there are any.
        again: install also what seems to be there already.

    Raises:
        SetUpError: neither uv nor pip could do it.
    """
    pip = [str(python_of(venv)), "-m", "pip", "install", "--disable-pip-version-check"]
    if not sys.stderr.isatty():
        pip.append("--quiet")
    say("Installing the lab's packages: JupyterLab, pandas, matplotlib and what they need.")
    if not _install_by_uv(venv, pip, project, again=again):
        say("uv could not do it; installing with pip, which takes a minute or two.")
        options = ["--force-reinstall"] if again else []
        run([*pip, *options, "--editable", project], doing="installing the packages")


def need_ensurepip() -> None:
    """Install Debian's part of the standard library that makes environments, if it is missing."""
    if importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv"):
        return
    package = f"python3.{sys.version_info[1]}-venv"
    advice = f"Install it: 'sudo apt-get install {package}', then start the lab again."
    if shutil.which("apt-get") is None or not sys.executable.startswith("/usr/bin/"):
        advice = "Use a Python that has it, from python.org or your system's packages."
    elif os.geteuid() == 0:
        say(f"Installing {package}, which makes Python environments.")
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["install", "--yes", "--no-install-recommends", package]
        for command in (["update"], install):
            answer = subprocess.run(["apt-get", *command], env=environ, capture_output=True)
        if answer.returncode == 0:
            return
        advice += f" It failed here: {answer.stderr.decode(errors='replace').strip()}"
    raise SetUpError(
        f"making the environment: the Python '{sys.executable}' lacks 'ensurepip'. {advice}"
    )


def uv_settings(pip_settings: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that make uv use the indexes that pip uses.

    Args:
        pip_settings: pip's settings by name, ``index-url`` and so on.
        environ: the environment; what it sets for uv already is kept.
    """
    found = {"UV_NATIVE_TLS": "1"}
    for name, variable in UV_NAMES.items():
        if name in pip_settings:
            values = pip_settings[name].split()
            found[variable] = ("," if variable in COMMA_SEPARATED else " ").join(values)
    if "UV_INDEX" in found:
        # pip takes the best version of all indexes; uv, by default, looks in the first only.
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if "SSL_CERT_FILE" not in found and environ.get("REQUESTS_CA_BUNDLE"):
        found["SSL_CERT_FILE"] = environ["REQUESTS_CA_BUNDLE"]
    return {name: value for name, value in found.items() if not environ.get(name)}


def parse_pip_settings(text: str) -> dict[str, str]:
    """Return pip's settings by name, as ``pip config list`` prints them.

    Args:
        text: lines such as ``global.index-url='https://…'``; ``:env:`` ones count most.
    """
    found: dict[str, str] = {}
    for line in sorted(text.splitlines(), key=lambda line: line.startswith(":env:")):
        match = re.match(r"(global|install|:env:)\.([\w-]+)=(.*)", line)
        if match:
            with contextlib.suppress(ValueError, SyntaxError):
                found[match[2]] = str(ast.literal_eval(match[3]))
    return found


def run(command: Sequence[str], *, doing: str) -> None:
    """Run a command whose output the user sees; raise SetUpError if it fails."""
    status = subprocess.run(command).returncode
    if status != 0:
        raise SetUpError(
            f"{doing}: '{' '.join(command)}' ended with {status}; its last lines are above. "
            "Behind a proxy or with an index of your own, set them as for pip, then try again."
        )


def say(text: str) -> None:
    """Print one line for the user, apart from what a command prints."""
    print(f"labapp: {text}", file=sys.stderr, flush=True)


def _install_by_uv(venv: Path, pip: Sequence[str], project: str, *, again: bool) -> bool:
    if subprocess.run([*pip, "uv"]).returncode != 0:
        return False
    listing = subprocess.run(
        [str(python_of(venv)), "-m", "pip", "config", "list"], capture_output=True, text=True
    )
    settings = uv_settings(parse_pip_settings(listing.stdout), os.environ)
    uv = [str(python_of(venv)), "-m", "uv", "pip", "install", "--python", str(python_of(venv))]
    if not sys.stderr.isatty():
        uv.append("--quiet")
    if again:
        uv.append("--reinstall")
    answer = subprocess.run([*uv, "--editable", project], env={**os.environ, **settings})
    return answer.returncode == 0
