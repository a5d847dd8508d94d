"""Images on the engine: built elsewhere, named here, pushed, pulled, and run as containers.

Pushes, pulls and containers have modules of their own; their functions are at hand here, so that
the way of an image reads as ``images.tag``, ``images.push``, ``images.pull``, ``images.run``.
"""

from __future__ import annotations

import docker.errors

from labapp.engine import Engine
from labapp.errors import ImageError
from labapp.feedback import Feedback
from labapp.images.containers import remove_running, run, run_once
from labapp.images.pulls import Pull, pull
from labapp.images.pushes import Push, push
from labapp.images.running import Running
from labapp.images.transfer import with_tag
from labapp.reference import Reference

__all__ = [
    "Pull",
    "Push",
    "Running",
    "pull",
    "push",
    "remove",
    "remove_running",
    "run",
    "run_once",
    "tag",
]


def tag(
    engine: Engine,
    source: Reference | str,
    target: Reference | str,
    *,
    feedback: Feedback,
) -> None:
    """Give an image on the engine one more name.

    Args:
        engine: where the image is.
        source: a name that it has.
        target: the new name; whatever had it before loses it.
        feedback: where the command is told.

    Raises:
        InvalidReference: one of them is no reference.
        ImageError: there is no such image, or the target has a digest.
    """
    source, target = with_tag(source), with_tag(target)
    doing = f"tagging '{source}' as '{target}'"
    if target.digest is not None:
        raise ImageError(f"{doing}: a digest can't be given, only a tag. Leave the digest out.")
    feedback.command(["docker", "tag", str(source), str(target)])
    with engine.doing(doing, ImageError):
        try:
            engine.client.api.tag(str(source), target.name, tag=target.tag)
        except docker.errors.ImageNotFound as error:
            raise ImageError(
                f"{doing}: the engine has no image '{source}'. Build it or pull it first."
            ) from error


def remove(engine: Engine, reference: Reference | str) -> bool:
    """Take a name from an image on the engine; the last name takes the image with it.

    Returns:
        Whether there was such a name.

    Raises:
        ImageError: a container uses the image.
    """
    with engine.doing(f"removing the image '{reference}'", ImageError):
        try:
            engine.client.api.remove_image(str(with_tag(reference)))
        except docker.errors.ImageNotFound:
            return False
    return True
