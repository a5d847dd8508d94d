"""The token service of the class's registry, which the hub runs: the learners' accounts are its."""

import json
from pathlib import Path

from labapp.private import service
from labapp.room import TOKENS
from labapp.state import State

ROOM = Path("/srv/room")
room = json.loads((ROOM / "room.json").read_text(encoding="utf-8"))
service.serve(State.open(ROOM), ROOM / room["private"], place=("", TOKENS), realm=room["realm"])
