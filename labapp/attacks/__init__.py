"""The wrong things of the chapter, done for real to this lab's own objects, and undone again.

Each step of an image's journey has one. What an attack changes is in the journal before it happens
(:mod:`labapp.attacks.journal`), and :func:`undo` puts it back, whatever became of the attacker.
"""

from __future__ import annotations

from labapp.attacks.catalogue import ATTACKS, Attack, Happened, find_attack
from labapp.attacks.changes import copy_base
from labapp.attacks.doing import start
from labapp.attacks.exposure import exposure
from labapp.attacks.gate import gate, refusals
from labapp.attacks.undoing import undo
from labapp.attacks.wheels import hashed_requirements

__all__ = [
    "ATTACKS",
    "Attack",
    "Happened",
    "copy_base",
    "exposure",
    "find_attack",
    "gate",
    "hashed_requirements",
    "refusals",
    "start",
    "undo",
]
