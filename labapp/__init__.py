"""A hands-on lab on building and delivering container images.

The names below are imported when they are first used, so that a bare Python can run
``python3 -m labapp`` before anything is installed.
"""

import importlib
import importlib.util
import sys

_HOMES = {
    "LabError": "labapp.errors",
    "Reference": "labapp.reference",
    "open_lab": "labapp.lab",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    """Import a public name from its module; the charts load matplotlib at the first chart."""
    if name == "charts":
        spec = importlib.util.find_spec("labapp.charts")
        assert spec is not None and spec.loader is not None
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules["labapp.charts"] = globals()["charts"] = module
        spec.loader.exec_module(module)
        return module
    if name not in _HOMES:
        raise AttributeError("module 'labapp' has no attribute '%s'" % name)  # noqa: UP031
    return getattr(importlib.import_module(_HOMES[name]), name)
