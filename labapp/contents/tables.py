"""The union of the layers as tables, one function a table; `Contents` tells the columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas import DataFrame

from labapp.contents import packages as databases
from labapp.contents import tools as programs
from labapp.contents.archive import DIRECTORY, FILE, HARDLINK, KINDS, SYMLINK
from labapp.contents.merge import Union
from labapp.contents.packages import Package

_KINDS = np.array(KINDS, dtype=object)
_CHANGES = np.array(["added", "changed"], dtype=object)

_CHANGE_COLUMNS = ["path", "layer", "change", "bytes", "wasted_bytes"]
_PACKAGE_COLUMNS = [*Package.__annotations__, "layer"]
_SET_UID, _SET_GID = 0o4000, 0o2000


def files(union: Union) -> DataFrame:
    """Return what a container sees, sorted by path."""
    paths = sorted(union.visible)
    at = np.fromiter(map(union.visible.__getitem__, paths), np.int64, len(paths))
    targets = np.full(union.starts[-1], "", dtype=object)
    for start, layer in zip(union.starts, union.layers, strict=False):
        targets[np.fromiter(layer.targets, np.int64) + start] = list(layer.targets.values())
    return DataFrame(
        {
            "path": paths,
            "type": _KINDS[union.column("kinds")[at]],
            "bytes": union.bytes[at],
            "mode": union.column("modes")[at],
            "uid": union.column("uids")[at],
            "gid": union.column("gids")[at],
            "target": targets[at],
            "layer": np.searchsorted(union.starts, at, side="right"),
            "change": _CHANGES[union.changed[at].astype(int)],
            "package": _owners(union)[at],
        }
    )


def changes(union: Union) -> DataFrame:
    """Return every entry and every whiteout of every layer, in the layers' order."""
    parts = []
    original = union.column("bytes")
    for index, layer in enumerate(union.layers):
        span = slice(union.starts[index], union.starts[index + 1])
        removals = [each for each in union.removals if each.layer == index]
        parts.append(
            DataFrame(
                {
                    "path": [*(each.path for each in removals), *layer.paths],
                    "layer": index + 1,
                    "change": np.concatenate(
                        [
                            np.full(len(removals), "deleted", dtype=object),
                            _CHANGES[union.changed[span].astype(int)],
                        ]
                    ),
                    "bytes": np.concatenate([np.zeros(len(removals), np.int64), original[span]]),
                    "wasted_bytes": np.concatenate(
                        [
                            np.array([each.wasted_bytes for each in removals], np.int64),
                            union.hides[span],
                        ]
                    ),
                }
            )
        )
    if not parts:
        return DataFrame(columns=_CHANGE_COLUMNS)
    return pd.concat(parts, ignore_index=True)


def packages(union: Union) -> DataFrame:
    """Return the packages that the visible databases name, with the layer they came with."""
    rows: list[tuple[Package, int]] = []
    for path, index in _visible_databases(union):
        versions = {
            number: layer.databases[path]
            for number, layer in enumerate(union.layers[: index + 1], 1)
            if path in layer.databases
        }
        rows += databases.rows_with_layers(versions)
    return package_rows(rows)


def package_rows(rows: Iterable[tuple[Package, int]]) -> DataFrame:
    """Return packages as a table, by kind and name; the layer is the last column."""
    ordered = sorted(rows, key=lambda row: (row[0]["kind"], row[0]["name"], row[0]["version"]))
    table = DataFrame(
        [[*package.values(), layer] for package, layer in ordered], columns=_PACKAGE_COLUMNS
    )
    return table.astype({"unpacked_bytes": "int64", "layer": "int64"})


def privileged(files: DataFrame) -> DataFrame:
    """Return the files that run with another user's or group's rights; a row for each bit."""
    regular = files[files["type"].isin(["file", "hardlink"])]
    found = []
    for name, bit in (("set-uid", _SET_UID), ("set-gid", _SET_GID)):
        rows = regular[(regular["mode"] & bit) > 0].copy()
        rows.insert(1, "bit", name)
        found.append(rows)
    columns = ["path", "bit", "mode", "uid", "gid", "bytes", "layer"]
    return pd.concat(found)[columns].sort_values(["path", "bit"], ignore_index=True)


def tools(union: Union) -> DataFrame:
    """Return the shells, compilers, package managers and network clients."""
    kinds, modes = union.column("kinds"), union.column("modes")
    regular = (kinds == FILE) | (kinds == HARDLINK)
    runs = (kinds == SYMLINK) | (regular & ((modes & 0o111) > 0))
    links: dict[int, str] = {}
    for start, layer in zip(union.starts, union.layers, strict=False):
        links |= {start + number: target for number, target in layer.targets.items()}

    def link(path: str) -> str | None:
        entry = union.visible.get(path)
        if entry is None:
            return None
        return links.get(entry, "") if kinds[entry] == SYMLINK else ""

    wanted = runs.tolist()
    found = programs.find([path for path, entry in union.visible.items() if wanted[entry]], link)
    rows = []
    for tool in found:
        entry = union.visible.get(tool.path)
        if entry is not None and regular[entry]:
            rows.append((*tool, int(union.bytes[entry]), union.layer_of(entry) + 1))
    table = DataFrame(rows, columns=["name", "kind", "path", "bytes", "layer"])
    return table.astype({"bytes": "int64", "layer": "int64"})


def secrets(union: Union) -> DataFrame:
    """Return where secrets are, in every layer."""
    rows = []
    for index, (start, layer) in enumerate(zip(union.starts, union.layers, strict=False)):
        for secret in layer.secrets:
            path = layer.paths[secret.entry]
            visible = union.visible.get(path) == start + secret.entry
            rows.append((path, secret.line, secret.kind, index + 1, visible))
    table = DataFrame(rows, columns=["path", "line", "kind", "layer", "visible"])
    return table.astype({"line": "Int64", "layer": "int64", "visible": bool})


def _visible_databases(union: Union) -> list[tuple[str, int]]:
    """Return the database files that a container sees, and the index of the layer they're in."""
    paths = dict.fromkeys(path for layer in union.layers for path in layer.databases)
    seen = ((path, union.layer_seeing(path)) for path in paths)
    return [
        (path, index)
        for path, index in seen
        if index is not None and path in union.layers[index].databases
    ]


def _owners(union: Union) -> npt.NDArray[np.object_]:
    """Return each entry's package, by the lists that a container sees; empty for none."""
    owners = np.full(union.starts[-1], "", dtype=object)
    for index, layer in enumerate(union.layers):
        names = [
            package if union.layer_seeing(document) == index else ""
            for document, package in layer.claims
        ]
        span = slice(union.starts[index], union.starts[index + 1])
        owners[span] = np.array([*names, ""], dtype=object)[layer.owners]
    # What a list says of other layers' files fills what their own lists left open.
    for index, layer in enumerate(union.layers):
        for claim, paths in layer.elsewhere.items():
            document, package = layer.claims[claim]
            if union.layer_seeing(document) == index:
                _fill(union, owners, package, paths)
    return owners


def _fill(
    union: Union, owners: npt.NDArray[np.object_], package: str, paths: Sequence[str]
) -> None:
    for path in paths:
        entry = union.visible.get(path)
        if entry is None or owners[entry]:
            continue
        layer = union.layers[union.layer_of(entry)]
        if layer.kinds[entry - union.starts[union.layer_of(entry)]] != DIRECTORY:
            owners[entry] = package
