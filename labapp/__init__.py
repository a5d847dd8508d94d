"""A hands-on lab on building and delivering container images.

The names below are imported when they are first used, so that a bare Python can run
``python3 -m labapp`` before anything is installed.
"""

import importlib

_HOMES = {
    "Engine": "labapp.engine",
    "Lab": "labapp.lab",
    "LabError": "labapp.errors",
    "Reference": "labapp.reference",
    "Registry": "labapp.registry",
    "State": "labapp.state",
    "open_lab": "labapp.opening",
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
    if name not in _HOMES:
        raise AttributeError("module 'labapp' has no attribute '%s'" % name)  # noqa: UP031
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list:  # type: ignore[type-arg]
    """List the public names."""
    return sorted(__all__)
