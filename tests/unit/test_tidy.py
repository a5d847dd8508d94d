"""What may go and what stays, decided without an engine; and what is said on a full disk."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import docker.errors
import pytest
from click.testing import CliRunner
from recorded import engine_that_built, engine_that_said
from registries import Seen

from labapp import cli, tidy
from labapp.errors import EngineError, PushError, RegistryError
from labapp.journey import transfer
from labapp.state import State


def digest(name: str) -> str:
    return "sha256:" + name.encode().hex().ljust(64, "0")


def test_what_a_learner_names_is_kept_and_what_a_cell_printed_is_not(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state")
    state.write("receipts", {"receipts": [{"evidence": {"image": f"web@{digest('receipt')}"}}]})
    state.seal("attacks/1", {"before": digest("undo")})
    notebooks = tmp_path / "notebooks"
    (notebooks / "work/03").mkdir(parents=True)
    (notebooks / "work/03/deployment.yaml").write_text(f"image: shop/web@{digest('pin')}\n")
    (notebooks / "work/03/large.whl").write_bytes(digest("large").encode() * 20_000)
    output = [{"text": [f"Pushed: {digest('output')}\n"]}]
    cell = {"source": [f"lab.pull('web@{digest('cell')}')\n"], "outputs": output}
    (notebooks / "03.ipynb").write_text(json.dumps({"cells": [cell]}))
    (notebooks / "half.ipynb").write_text(f'{{"cells": "{digest("half")}')
    kept = {"receipt", "undo", "pin", "cell", "half"}
    assert tidy.named(state, notebooks) == {digest(each) for each in kept}


HERE, MINE = "localhost:41233/shop/web", {"labapp.lab": "0123abcd"}
IMAGES = [  # what it is, labels, tags, names by digest
    ("mine", MINE, ["<none>:<none>"], None),
    ("pulled", {}, [], [f"{HERE}@{digest('pulled')}"]),
    ("tagged", MINE, [f"{HERE}:1"], None),
    ("pinned", MINE, [], [f"{HERE}@{digest('pin')}"]),
    ("used", MINE, [], None),
    ("of another lab", {"labapp.lab": "0badcafe"}, [], None),
    ("somebody's", None, None, [f"localhost:4123/x@{digest('x')}"]),
]
CACHE = [  # what it is, what it was built on, its description
    ("base", "", f"pulled from localhost:41233/base/python@{digest('base')}"),
    ("step", "base", "[2/3] COPY . ."),
    ("result", "step", "mount / from exec /bin/sh -c true"),
    ("other base", "", f"pulled from localhost:4123/base/python@{digest('base')}"),
    ("other step", "other base", "[2/3] COPY . ."),
    ("context", "", "local source for context"),
]


def test_on_the_engine_only_what_is_this_labs_and_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "id").write_text("0123abcd")
    State.open(tmp_path / "state").write("receipts", {"image": digest("pin")})
    about, free = {"Size": 9, "SharedSize": 4}, {"Shared": False, "InUse": False}
    images = [
        {"Id": digest(name), "Labels": labels, "RepoTags": tags, "RepoDigests": digests, **about}
        for name, labels, tags, digests in IMAGES
    ]
    records = [
        {"ID": name, "Parents": [parent], "Description": text, "Size": 1, "CreatedAt": at, **free}
        for at, (name, parent, text) in enumerate(CACHE)
    ]
    records[0]["Shared"] = True
    gone: list[str] = []

    def answer(seen: Seen) -> object:
        if "/system/df" in seen.path:
            return {"Images": images, "BuildCache": records}
        if "/containers/json" in seen.path:
            return [{"ImageID": digest("used")}]
        if seen.method == "DELETE" or "/build/prune" in seen.path:
            gone.append(unquote(seen.path))
            records[:] = [each for each in records if f'"{each["ID"]}"' not in gone[-1]]
            return {"SpaceReclaimed": 1}
        return images if "/images/json" in seen.path else None

    with engine_that_built("docker-26", "build", tmp_path, also=answer) as engine:
        state = State.open(tmp_path / "state")
        state.write("registry", {"port": 41233})
        for name, value in engine.variables.items():
            monkeypatch.setenv(name, value)
        heaps = tidy.plan(state, tmp_path / "none")
        assert [heap.size for heap in heaps] == [10, 2]
        # What only these images had shared of the cache goes with them.
        assert [heap.free() for heap in heaps] == [12, 0]
    going = [digest("mine"), digest("pulled"), '"result"', '"step"']
    assert [name in request for name, request in zip(going, gone, strict=True)] == [True] * 4


@pytest.mark.parametrize(
    ("options", "answer", "freed"),
    [
        (["--dry-run", "--yes"], "", []),
        ([], "n", []),
        ([], "y", ["one", "two"]),
        (["--yes"], "", ["one", "two"]),
    ],
)
def test_nothing_goes_unless_it_is_asked_for(
    options: list[str], answer: str, freed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def free(name: str) -> int:
        done.append(name)
        if name == "one":
            raise RegistryError("somebody pushes")
        return 2_000

    heaps = [tidy.Heap(name, 1_500_000, partial(free, name)) for name in ("one", "two")]
    monkeypatch.setattr(tidy, "plan", lambda *_: heaps)
    ran = CliRunner().invoke(cli.command, ["tidy", *options], input=answer, standalone_mode=False)
    assert done == freed
    assert "1.5 MB  one" in ran.output and "3.0 MB  can be freed" in ran.output
    assert ("2.0 kB  freed" in ran.output, "somebody pushes" in ran.output) == (bool(freed),) * 2
    assert ran.return_value == (1 if freed else 0)


def test_on_a_full_disk_the_error_names_what_helps(tmp_path: Path) -> None:
    said = "write /var/lib/docker/tmp/x: no space left on device"
    (tmp_path / "it.jsonl").write_text(f'{{"http_status": 200}}\n{json.dumps({"error": said})}\n')
    with engine_that_said("docker-26", tmp_path, str(tmp_path / "it")) as engine:
        with pytest.raises(EngineError, match="labapp tidy"), engine.doing("running 'x'"):
            raise docker.errors.APIError("500", explanation=said)
        with pytest.raises(PushError, match="labapp tidy"):
            transfer.push(engine, None, "registry.example/shop/web:1")
