"""JSON documents written by others, read field by field with the type that each must have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

T = TypeVar("T")


class FieldError(ValueError):
    """A document is not JSON, or a field of it is missing or of the wrong type."""


@dataclass(frozen=True)
class Fields:
    """One JSON object; a field that is ``null`` counts as missing, as Go programs write it so.

    Attributes:
        values: the object as it was read.
        path: where it stands in its document, as in ``layers[0].``; empty for the whole.
    """

    values: Mapping[str, Any]
    path: str = ""

    @classmethod
    def read(cls, raw: bytes) -> Fields:
        """Read a whole document.

        Raises:
            FieldError: not UTF-8, not JSON, too deeply nested, or not an object.
        """
        try:
            values = json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise FieldError("it is not JSON") from error
        if not isinstance(values, dict):
            raise FieldError("it is JSON, but not an object")
        return cls(values)

    def text(self, name: str) -> str:
        """Return a text; empty where it is missing."""
        return self._typed(name, str, "a text") or ""

    def needed_text(self, name: str) -> str:
        """Return a text that may not be missing or empty."""
        return self.text(name) or self._missing(name)

    def size(self, name: str) -> int:
        """Return a whole number of bytes that may not be missing."""
        size = self.values.get(name)
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
            raise FieldError(f"its field '{self.path}{name}' is not a number of bytes")
        return size

    def flag(self, name: str) -> bool:
        """Return a truth value; False where it is missing."""
        return self._typed(name, bool, "true or false") or False

    def time(self, name: str) -> datetime | None:
        """Return a moment in UTC (RFC 3339), or None where it is missing or empty."""
        text = self.text(name)
        if not text:
            return None
        try:
            moment = datetime.fromisoformat(text)
            aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return aware.astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise FieldError(f"its field '{self.path}{name}' is not a date and time") from error

    def texts(self, name: str) -> tuple[str, ...] | None:
        """Return a list of texts, or None where it is missing."""
        found = self._typed(name, list, "a list of texts")
        if found is None:
            return None
        if not all(isinstance(item, str) for item in found):
            raise FieldError(f"its field '{self.path}{name}' is not a list of texts")
        return tuple(found)

    def mapping(self, name: str) -> dict[str, str]:
        """Return an object whose values are texts; empty where it is missing."""
        found = self._typed(name, dict, "an object of texts") or {}
        if not all(isinstance(value, str) for value in found.values()):
            raise FieldError(f"its field '{self.path}{name}' is not an object of texts")
        return dict(found)

    def object(self, name: str) -> Fields:
        """Return an object; empty where it is missing."""
        return Fields(self._typed(name, dict, "an object") or {}, f"{self.path}{name}.")

    def objects(self, name: str) -> tuple[Fields, ...]:
        """Return a list of objects; empty where it is missing."""
        found = self._typed(name, list, "a list of objects") or []
        if not all(isinstance(item, dict) for item in found):
            raise FieldError(f"its field '{self.path}{name}' is not a list of objects")
        return tuple(
            Fields(item, f"{self.path}{name}[{number}].") for number, item in enumerate(found)
        )

    def need(self, *names: str) -> None:
        """Raise FieldError unless all these fields are there."""
        for name in names:
            if self.values.get(name) is None:
                self._missing(name)

    def _typed(self, name: str, wanted: type[T], words: str) -> T | None:
        value = self.values.get(name)
        if value is None or isinstance(value, wanted):
            return value
        raise FieldError(f"its field '{self.path}{name}' is not {words}")

    def _missing(self, name: str) -> Any:
        raise FieldError(f"its field '{self.path}{name}' is missing")
