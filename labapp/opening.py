"""Opening the lab from a notebook."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from labapp import attacks
from labapp.bench import prepare
from labapp.errors import AttackError, ExerciseError
from labapp.exercises.coach import Coach
from labapp.feedback import feedback_here
from labapp.lab import Lab
from labapp.progress.grading import Submission, submission
from labapp.state import State


def open_lab(chapter: str) -> Lab | Submission:
    """Open the lab for a chapter: find or start engine and registry, and say where they are.

    Where the notebook is being graded, nothing is started: receipts stand in for the lab.

    Args:
        chapter: two digits; the chapter's files are in ``work/<chapter>`` beside the notebook.

    Raises:
        LabError: something is missing; the message says what, and what to do.
    """
    if not (chapter.isdigit() and len(chapter) == 2):
        raise ExerciseError(f"opening chapter {chapter!r}: write two digits, such as '03'.")
    feedback = feedback_here()
    graded = submission(Path.cwd())
    if graded is not None:
        feedback.say(f"This notebook is being graded, by the receipts in '{graded.file.name}'.")
        return graded
    work = Path.cwd() / "work" / chapter
    work.mkdir(parents=True, exist_ok=True)
    bench = replace(prepare(State.open(), feedback=feedback), work=work)
    # So that `!docker` in a cell speaks to the same engine, wherever the kernel was started.
    os.environ.update(bench.engine.variables)
    # Not from a delivery script, which would undo what it has to survive.
    if "LAB_SERVICE" not in os.environ:
        try:
            # What a kernel that died in mid-attack has left.
            attacks.undo(bench, feedback=feedback)
        except AttackError as error:
            feedback.say(str(error))
    lab = Lab(bench=bench, feedback=feedback, coach=Coach(bench))
    engine = bench.engine
    feedback.say(
        f"{engine.name} {engine.version} ({engine.store} image store, {engine.builder} builder) · "
        f"registry {lab.address} · lab {bench.state.lab_id}"
    )
    return lab
