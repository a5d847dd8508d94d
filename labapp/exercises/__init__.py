"""The exercises of all chapters, found by their id."""

from __future__ import annotations

from labapp.errors import ExerciseError
from labapp.exercises import (
    chapter00,
    chapter01,
    chapter02,
    chapter03,
    chapter04,
    chapter05,
    chapter06,
    chapter07,
    chapter08,
)
from labapp.exercises.exercise import Exercise, Outcome, Verdict

__all__ = ["Exercise", "Outcome", "Verdict", "all_exercises", "find_exercise"]


def all_exercises() -> dict[str, Exercise]:
    """Return every exercise by its id, in the order of the chapters."""
    chapters = (
        *(chapter00, chapter01, chapter02, chapter03, chapter04),
        *(chapter05, chapter06, chapter07, chapter08),
    )
    return {exercise.id: exercise for chapter in chapters for exercise in chapter.EXERCISES}


def find_exercise(id: str) -> Exercise:
    """Return the exercise with an id.

    Raises:
        ExerciseError: there is none; the message lists those of the same chapter.
    """
    exercises = all_exercises()
    if id not in exercises:
        near = [known for known in exercises if known[:2] == str(id)[:2]] or list(exercises)
        raise ExerciseError(
            f"looking up the exercise {id!r}: there is none. Known here: {', '.join(near)}."
        )
    return exercises[id]
