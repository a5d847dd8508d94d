"""Which layers images share."""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Polygon

from labapp.charts.figure import GREY, PALETTE, SMALL, Chart, fitted_middle, whole
from labapp.charts.frames import THICK, Bar, bars_axes, ground, inside
from labapp.charts.rows import byte_unit, checked, counted, named, numbers, telling
from labapp.feedback import amount

_TOLD = "ABC"
"""The shared layers that are told by name."""


def shared_layers(variants: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw which layers images share: who has one of them fetches it only once.

    Args:
        variants: for each image's name its layers, lowest first; columns ``instruction``,
            ``digest`` and ``download_bytes``.

    Raises:
        LabError: there are no rows, or a column is missing.
    """
    for name, rows in named(variants, chart="shared layers").items():
        checked(rows, "instruction", "digest", "download_bytes#", chart="shared layers", name=name)
    # An image may hold the same layer twice, but nobody fetches it twice.
    alone = {name: rows.drop_duplicates("digest") for name, rows in variants.items()}
    holders = Counter(digest for rows in alone.values() for digest in rows["digest"])
    shared = [digest for digest, count in holders.items() if count > 1]
    sizes = {digest: _bytes_of(digest, alone.values()) for digest in shared}
    shared.sort(key=sizes.__getitem__, reverse=True)
    colours = {digest: PALETTE[n % 5] for n, digest in enumerate(shared)}
    # A letter tells layers apart where colours don't, on paper.
    letters = dict(zip(shared, string.ascii_uppercase, strict=False))
    in_common = {
        name: rows.loc[rows["digest"].isin(colours), "download_bytes"]
        for name, rows in alone.items()
    }
    total = {name: sum(numbers(rows, "download_bytes")) for name, rows in alone.items()}
    words = {
        name: f"{amount(total[name])}, {amount(sum(own))} of it shared" if len(own)
        else f"{amount(total[name])}, nothing shared"
        for name, own in in_common.items()
    }  # fmt: skip
    size, unit = byte_unit(max(total.values()))
    saved = sum((holders[digest] - 1) * sizes[digest] for digest in shared)
    title = _shared_title(len(variants), len(shared), saved)
    axes, places = bars_axes(
        [Bar(name, total[name] / size, words[name]) for name in variants],
        title=title, row=40, note=_shared_note(alone, sizes),
        unit=f"{unit} to download (compressed); grey: in this image alone",
    )  # fmt: skip
    spans: list[dict[str, tuple[float, float]]] = []
    for rows, place in zip(alone.values(), places, strict=True):
        left = 0.0
        spans.append({})
        for layer in rows.to_dict("records"):
            wide, digest = float(layer["download_bytes"]) / size, layer["digest"]
            colour = colours.get(digest, GREY)
            axes.barh(place, wide, left=left, height=THICK, color=colour, edgecolor="white",
                      linewidth=0.5)  # fmt: skip
            text = telling(str(layer["instruction"]))
            inside(axes, left, wide, place, text, on=colour, before=letters.get(digest, "") + " ")
            spans[-1][digest] = (left, left + wide)
            left += wide
    _ribbons(axes, places, spans, colours)
    ground(axes)
    said = "; ".join(
        f"{name}: {counted(len(rows), 'layer')}, {words[name]}" for name, rows in alone.items()
    )
    return Chart(whole(axes), f"Bar chart of layers. {title}. {said}.")


def _shared_title(images: int, layers: int, saved: float) -> str:
    if images == 1:
        return "One image alone shares nothing: add another to compare"
    if not layers:
        return f"These {images} images share no layer: each is fetched whole"
    return (
        f"{counted(layers, 'shared layer')}, in colour: who has pulled one image "
        f"fetches {amount(saved)} less for the " + ("other" if images == 2 else "others")
    )


def _shared_note(images: Mapping[str, pd.DataFrame], sizes: Mapping[str, float]) -> str:
    """Say what the largest shared layers are, by their letters."""
    if not sizes:
        return ""
    rows = pd.concat(list(images.values())).drop_duplicates("digest").set_index("digest")
    ordered = sorted(sizes, key=sizes.__getitem__, reverse=True)
    names = [fitted_middle(telling(str(rows["instruction"][key])), 300, SMALL) for key in ordered]
    said = [
        f"{letter}: {name}, {amount(sizes[digest])}"
        for letter, name, digest in zip(_TOLD, names, ordered, strict=False)
    ]
    rest = len(ordered) - len(_TOLD)
    return "; ".join(said) + (f"; and {counted(rest, 'smaller one')}." if rest > 0 else ".")


def _bytes_of(digest: str, images: Iterable[pd.DataFrame]) -> float:
    found = (rows.loc[rows["digest"] == digest, "download_bytes"] for rows in images)
    return next(float(sizes.iloc[0]) for sizes in found if len(sizes))


def _ribbons(
    axes: Axes,
    places: Sequence[float],
    spans: Sequence[Mapping[str, tuple[float, float]]],
    colours: Mapping[str, str],
) -> None:
    """Join a shared layer's block to the same one in the next image below."""
    for (upper, above), (lower, below) in itertools.pairwise(zip(places, spans, strict=True)):
        for digest in above.keys() & below.keys():
            (left, right), (low_left, low_right) = above[digest], below[digest]
            top, bottom = upper + THICK / 2, lower - THICK / 2
            corners = [(left, top), (right, top), (low_right, bottom), (low_left, bottom)]
            axes.add_patch(Polygon(corners, facecolor=colours[digest], alpha=0.3, linewidth=0))
