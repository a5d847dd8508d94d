"""Platforms: which machines an image runs on, as in ``linux/arm64/v8``.

Source: OCI Image Specification 1.1, image-index.md (the ``platform`` of a manifest).
"""

from __future__ import annotations

import platform as machine
from dataclasses import dataclass


@dataclass(frozen=True)
class Platform:
    """What a machine must be to run an image, as in ``linux/arm64/v8``."""

    os: str
    architecture: str
    variant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read ``os/architecture`` or ``os/architecture/variant``.

        Raises:
            ValueError: the text has another form.
        """
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(parts):
            raise ValueError(
                f"reading the platform '{text}': it is not of the form os/architecture or "
                "os/architecture/variant. Write it as in 'linux/amd64' or 'linux/arm64/v8'."
            )
        return cls(*parts)

    @classmethod
    def here(cls) -> Platform:
        """Return the platform of this machine's containers, which are Linux on every system."""
        processor = machine.machine().lower()
        return cls("linux", {"x86_64": "amd64", "aarch64": "arm64"}.get(processor, processor))

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def can_run(self, other: Platform) -> bool:
        """Tell if an image for another platform runs here; an unsaid variant fits any."""
        if (self.os, self.architecture) != (other.os, other.architecture):
            return False
        return None in (self.variant, other.variant) or self.variant == other.variant
