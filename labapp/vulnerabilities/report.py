"""What is known of an image's vulnerabilities, and by whom."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import pandas as pd

from labapp.vulnerabilities.fixes import MISSING, SINCE_RELEASE


@dataclass(frozen=True)
class Report:
    """The known CVEs of an image's packages.

    Attributes:
        rows: one for each CVE and package: ``cve``, ``package``, ``source_package``, ``installed``
            and ``fixed`` (versions; of the source package, where Debian is the source), ``date``
            (when the fix was published, NaT if unknown), ``state``, ``source``, ``severity`` (empty
            if unknown), ``headers`` (whether the package is the kernel's headers, which never run).
            A state is ``missing`` (there is a fix, the image lacks it), ``since release`` (the
            image has the fix, one of release day would not) or ``no fix yet`` (scanners only).
        source: who says so.
        date: of the data, in UTC.
        blind: what the source can't see, in a sentence.
        without_cve: how many updates since the release name no CVE.
        knows_release: whether the source tells what was fixed since the release.
        notes: what could not be read, in words; its CVEs are not counted.
    """

    rows: pd.DataFrame
    source: str
    date: datetime
    blind: str
    without_cve: int = 0
    knows_release: bool = True
    notes: tuple[str, ...] = ()

    @cached_property
    def missing(self) -> int:
        """How many CVEs the image has for which a fix is there; without the kernel's headers."""
        return int(self._run[self._run["state"] == MISSING]["cve"].nunique())

    @cached_property
    def since_release(self) -> int | None:
        """How many CVEs were fixed in these packages since the release, without headers.

        They include the missing ones: an image of release day, never rebuilt, has all of them. It
        is None where the source can't tell, as scanners can't: they list what is open today.
        """
        return int(self._fixed["cve"].nunique()) if self.knows_release else None

    @cached_property
    def header_cves(self) -> int:
        """How many CVEs the kernel's headers carry, which are compiled against and never run."""
        return int(self.rows[self.rows["headers"]]["cve"].nunique())

    @cached_property
    def by_month(self) -> pd.DataFrame:
        """The CVEs fixed since the release, month by month, without headers.

        Returns:
            ``month`` (its first day) and ``cves`` (distinct ones up to its end), from the first fix
            to the date of the data; no rows where no dates are known.
        """
        dated = self._fixed.dropna(subset="date") if self.knows_release else self._fixed.iloc[:0]
        first = dated.groupby("cve")["date"].min().dt.to_period("M").value_counts()
        if first.empty:
            return pd.DataFrame({"month": pd.to_datetime([]), "cves": pd.Series(dtype="int64")})
        last = max(first.index.max(), pd.Period(self.date.strftime("%Y-%m"), "M"))
        months = pd.period_range(first.index.min(), last, freq="M")
        cves = first.reindex(months, fill_value=0).cumsum().to_numpy()
        return pd.DataFrame({"month": months.to_timestamp(), "cves": cves})

    @property
    def _run(self) -> pd.DataFrame:
        return self.rows[~self.rows["headers"]]

    @property
    def _fixed(self) -> pd.DataFrame:
        return self._run[self._run["state"].isin([MISSING, SINCE_RELEASE])]
