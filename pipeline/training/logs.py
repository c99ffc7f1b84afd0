"""The curves of a training as CSV: a row per step, and a row per validation; a resumed training leaves no row twice."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self


class Curve:
    """One CSV file, to be used under `with`.

    Parameters
    ----------
    path : Path
    step : int
        Of the state that is taken up. Later rows, and one cut short by a kill, are dropped: they will be written again.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._header: list[str] = []
        self._kept: list[list[str]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self._header, *rows = list(csv.reader(file)) or [[]]
            whole = [row for row in rows if len(row) == len(self._header) and row[0].isdigit()]
            self._kept = [row for row in whole if int(row[0]) <= step]

    def __enter__(self) -> Self:
        temporary = self._path.with_name(f".{self._path.name}.partial")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self._header, *self._kept] if self._header else [])
        temporary.replace(self._path)
        self._file = self._path.open("a", newline="", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, step: int, values: Mapping[str, float | str]) -> None:
        """A row; the first one names the columns."""
        writer = csv.writer(self._file)
        if not self._header:
            self._header = ["step", *values]
            writer.writerow(self._header)
        # All digits, so that two curves can be compared to the last bit.
        writer.writerow([step, *(repr(v) if isinstance(v := values[name], float) else v for name in self._header[1:])])
        self._file.flush()
