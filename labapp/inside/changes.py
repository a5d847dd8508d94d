"""What changed between two images, by package, by layer and by file: what a reviewer asks."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from labapp.errors import printable
from labapp.feedback import amount
from labapp.inside.image import Contents

_SAID = {"type": ["type"], "content": ["sum"], "mode": ["mode"], "owner": ["uid", "gid"]}
_SAID["target"] = ["target"]
"""What is compared of a file, in words, and by which columns."""


@dataclass(frozen=True)
class Changes:
    """What changed from one image to another; each table is empty where nothing did."""

    old: Contents = field(repr=False)
    new: Contents = field(repr=False)

    @cached_property
    def packages(self) -> pd.DataFrame:
        """Packages that came, went, or have another version, by kind and name.

        Columns: kind, name, change (added, removed or changed), and the versions old and new;
        several of one name are joined, and an empty text is none.
        """
        both = {"old": _versions(self.old), "new": _versions(self.new)}
        table = pd.concat(both, axis=1).fillna("").rename_axis(["kind", "name"]).reset_index()
        table = table[table["old"] != table["new"]].reset_index(drop=True)
        none = [table["old"] == "", table["new"] == ""]
        table.insert(2, "change", np.select(none, ["added", "removed"], "changed"))
        return table

    @cached_property
    def layers(self) -> pd.DataFrame:
        """The layers of both, those that went first, by digest.

        Columns: change (removed, kept or added), number (in the image that has it), download_bytes,
        instruction, digest. Who has the old image fetches what is added, and no more.
        """
        old, new = self.old.layers, self.new.layers
        gone = old[~old["digest"].isin(new["digest"])].assign(change="removed")
        kept = new["digest"].isin(old["digest"])
        table = pd.concat([gone, new.assign(change=np.where(kept, "kept", "added"))])
        columns = ["change", "number", "download_bytes", "instruction", "digest"]
        return table[columns].reset_index(drop=True)

    @cached_property
    def files(self) -> pd.DataFrame:
        """Files that came, went, or are not the same; first those that no changed package explains.

        Columns: path, change (added, removed or changed), what (content, type, mode, owner or
        target; empty unless changed), old_bytes and new_bytes (0 where there is none), package
        (whose file it is), explained (whether that package changed, too). A folder of both counts
        for its mode and its owner. The largest come first.
        """
        old, new = _files(self.old), _files(self.new)
        paths = old.index.union(new.index).rename("path")
        before, after = old.reindex(paths), new.reindex(paths)
        both = paths.isin(old.index) & paths.isin(new.index)
        what = pd.Series("", index=paths)
        for word, columns in _SAID.items():
            what += np.where((before[columns] != after[columns]).any(axis=1), f", {word}", "")
        last = after.fillna(before)
        table = pd.DataFrame(
            {
                "change": np.select(
                    [~paths.isin(old.index), ~both], ["added", "removed"], "changed"
                ),
                "what": what.str[2:].where(both, ""),
                "old_bytes": before["bytes"].fillna(0).astype("int64"),
                "new_bytes": after["bytes"].fillna(0).astype("int64"),
                "package": last["package"],
                "explained": last["package"].isin(set(self.packages["name"])),
            },
            index=paths,
        )[(what != "") & (both | (last["type"] != "directory"))].reset_index()
        largest = table.assign(most=-table[["old_bytes", "new_bytes"]].max(axis=1))
        order = largest.sort_values(["explained", "most", "path"]).index
        return table.loc[order].reset_index(drop=True)

    @property
    def summary(self) -> str:
        """What changed, in a few lines: how much of each, and what there is to fetch."""
        added = self.layers[self.layers["change"] == "added"]
        loose = int((~self.files["explained"]).sum())
        return (
            f"Packages: {_counted(self.packages)}.\n"
            f"Layers: {_counted(self.layers)}; to fetch {amount(added['download_bytes'].sum())} of "
            f"{amount(self.new.download_bytes)}.\n"
            f"Files: {_counted(self.files)}; {loose:,} of them are of no changed package."
        )

    def __repr__(self) -> str:
        return self.summary

    def _repr_html_(self) -> str:
        tables = [html.escape(self.summary).replace("\n", "<br>")]
        for table in (self.packages, self.layers, self.files):
            shown = table.head(20).map(lambda each: printable(each) if type(each) is str else each)
            tables.append(shown.to_html(border=0, index=False) if len(table) else "")
        return f'<div class="labapp-changes">{"".join(tables)}</div>'


def _versions(contents: Contents) -> pd.Series[str]:
    packages = contents.packages.sort_values("version").groupby(["kind", "name"])["version"]
    return packages.agg(lambda found: ", ".join(dict.fromkeys(found)))


def _files(contents: Contents) -> pd.DataFrame:
    return contents.files.assign(sum=contents.sums).set_index("path")


def _counted(table: pd.DataFrame) -> str:
    counts = table["change"].value_counts()
    return ", ".join(f"{count:,} {change}" for change, count in counts.items()) or "none changed"
