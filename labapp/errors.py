"""What the lab raises: every error that leaves the package is a :class:`LabError`.

A message has four parts: what was being done, the input in quotes, the cause, and the next step.
"""

from __future__ import annotations

import re

LONGEST = 8_000
"""How many characters of a message are shown."""

FULL = "Make room on the disk: 'python3 -m labapp tidy' shows what can go, and frees it."

PUSH_AGAIN = "Push the image again from where it was built; the lab then replaces what is damaged."


def on_a_full_disk(said: object) -> str:
    """Return what to do if what an engine or a registry said is of a full disk, else nothing."""
    return f" {FULL}" if "no space left" in str(said).lower() else ""


# Control characters but tab and line feed, lone surrogates, and what turns the writing direction.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return a stranger's text without what a terminal obeys or no file can hold."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


class LabError(Exception):
    """Any failure that the lab reports; its text is written for the learner."""

    def __str__(self) -> str:
        """Return the text, fit to print and to read, whatever it quotes."""
        text = printable(super().__str__())
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"

    def _render_traceback_(self) -> list[str]:
        """Show the message alone in a notebook: the stack is the lab's, not the learner's."""
        return [f"{type(self).__name__}: {self}"]


class InvalidReference(LabError, ValueError):
    """A text is not a valid image reference."""


class StateError(LabError):
    """The lab's state folder is damaged, not writable or in use."""


class EngineError(LabError):
    """The container engine failed."""


class EngineNotFound(EngineError):
    """No container engine answers, and none could be started."""


class EngineLost(EngineError):
    """The engine answered before and does not any more."""


class RegistryError(LabError):
    """The registry refused or failed."""


class RegistryUnreachable(RegistryError):
    """Nothing answers at the registry's address."""


class RegistryFailed(RegistryError):
    """The registry answered that it failed, not that it refuses; the next time it may not."""


class NotInRegistry(RegistryError):
    """The registry holds no such repository, tag, manifest or blob."""


class DamagedContent(RegistryError):
    """Bytes from the registry do not match their digest or length."""


def damaged(doing: str, cause: object) -> DamagedContent:
    """Return the error for what an image has, and a new push mends."""
    return DamagedContent(f"{doing}: {cause}. {PUSH_AGAIN}")


class ImageError(LabError):
    """A step of an image's journey failed."""


class BuildError(ImageError):
    """A build failed.

    Attributes:
        log: the last lines that the build printed.
        line: the number of the Dockerfile line that failed, from 1, if it is known.
    """

    def __init__(self, message: str, *, log: tuple[str, ...] = (), line: int | None = None) -> None:
        super().__init__(message)
        self.log = log
        self.line = line


class PushError(ImageError):
    """A push failed, or left the image incomplete in the registry."""


class PullError(ImageError):
    """A pull failed."""


class RunError(ImageError):
    """A container could not be started, or ended with an error."""


class BaseError(LabError):
    """A base image, or the application's wheels, could not be had from any source."""


class VulnerabilityError(LabError):
    """No source can tell which known vulnerabilities an image carries."""


class DeploymentError(LabError):
    """A deployment file can't be read or run."""


class AttackError(LabError):
    """An attack of the lab is refused, or can't be done or undone."""


class ExerciseError(LabError):
    """There is no such exercise, or it can't be judged here."""


class ChapterError(LabError):
    """A cell of a chapter failed in a run without a browser; the message quotes the cell."""
