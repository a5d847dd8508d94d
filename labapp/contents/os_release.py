"""What an image says of the distribution that it is from.

Source: os-release(5).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

_ASSIGNMENT = re.compile(r"\s*(\w+)=(.*)")


def parse(text: str) -> Mapping[str, str]:
    """Read the assignments of an os-release file; a line that is none is left out."""
    found = {}
    for match in filter(None, map(_ASSIGNMENT.fullmatch, text.splitlines())):
        try:
            found[match[1]] = "".join(shlex.split(match[2], comments=True)[:1])
        except ValueError:  # quotes without an end
            continue
    return found
