"""What strangers send: texts made fit to print, and JSON read by the shape that it should have."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


class FieldError(ValueError):
    """A document is not JSON, or a field of it is missing or of the wrong type."""


def read_json(raw: bytes, shape: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a stranger's JSON object that a shape names, each of its type.

    What is ``null`` is left out, as Go programs write it for what is missing. Texts can be printed.
    A shape is a type, a list of one shape, or an object of them, where ``...`` is any name.
    """
    try:
        found = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FieldError("it is not JSON") from error
    return cast("dict[str, Any]", _shaped(found, shape, ""))


def printable(text: str) -> str:
    """Return a stranger's text without what a terminal obeys or no file can hold."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _shaped(value: Any, shape: Any, path: str) -> Any:
    wanted: Any = shape if isinstance(shape, type) else type(shape)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        where = f"its field '{printable(path[1:])}'" if path else "it"
        raise FieldError(f"{where} is not of the type '{wanted.__name__}'")
    if isinstance(shape, list):
        return [_shaped(item, shape[0], f"{path}[{n}]") for n, item in enumerate(value)]
    if isinstance(shape, dict):
        names = dict.fromkeys(value, shape[...]) if ... in shape else shape
        return {
            printable(name): _shaped(value[name], inner, f"{path}.{name}")
            for name, inner in names.items()
            if value.get(name) is not None
        }
    return printable(value) if isinstance(value, str) else value
