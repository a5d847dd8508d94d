"""A hands-on lab on building and delivering container images.

The names below are imported when they are first used, so that a bare Python can run
``python3 -m labapp`` before anything is installed.
"""

import importlib
import importlib.util
import sys

_HOMES = {
    "Engine": "labapp.machine.engine",
    "Lab": "labapp.lab",
    "LabError": "labapp.errors",
    "Reference": "labapp.reference",
    "Registry": "labapp.registry.client",
    "State": "labapp.state",
    "open_lab": "labapp.lab",
}

__all__ = [
    "Engine",
    "Lab",
    "LabError",
    "Reference",
    "Registry",
    "State",
    "open_lab",
]


def __getattr__(name: str) -> object:
    """Import a public name from the module where it lives."""
    if name == "charts":
        return _charts()
    if name not in _HOMES:
        raise AttributeError("module 'labapp' has no attribute '%s'" % name)  # noqa: UP031
    return getattr(importlib.import_module(_HOMES[name]), name)


def _charts() -> object:
    """Return the module of the charts, which loads pandas and matplotlib at the first chart."""
    spec = importlib.util.find_spec("labapp.charts")
    if spec is None or spec.loader is None:
        raise AttributeError("charts")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = globals()["charts"] = module
    spec.loader.exec_module(module)
    return module


def __dir__() -> list:  # type: ignore[type-arg]
    """List the public names."""
    return sorted(__all__)
