"""Settle the lab in its image: run once, by the Dockerfile beside it."""

import json
import sys
import tomllib
from pathlib import Path

from labapp.machine.bootstrap import ROOT, stamp
from labapp.machine.jupyter import OVERRIDES

venv = Path(sys.prefix)
stamp(venv, [])

# As a package that is installed in place has it: what the lab is called, and its version.
project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
name, version = project["name"], project["version"]
(packages,) = venv.glob("lib/python3*/site-packages")
about = packages / f"{name}-{version}.dist-info"
about.mkdir()
(about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

# JupyterLab begins as it does on one's own machine.
settings = venv / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
settings.parent.mkdir(parents=True, exist_ok=True)
settings.write_text(json.dumps(OVERRIDES), encoding="utf-8")
