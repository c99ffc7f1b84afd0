"""The curves of a training: a row per step, and a row per validation, as CSV and, if asked for, for TensorBoard.

<output>/
    steps.csv         losses              tensorboard/   steps/<role>.<term>
    validation.csv    scores                             validation/<network>/<score>

A resumed training leaves no row and no point twice.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hyperfuse.catalogs.errors import UsageError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def check_tensorboard() -> None:
    """Refuse to write for TensorBoard where it is not installed.

    Raises
    ------
    UsageError
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "setting tensorboard: the package is not installed; install it with `pip install 'hyperfuse[tensorboard]'`, or "
            "leave the setting out: the curves are CSV files as well"
        )


class Logs:
    """Both curves, to be used under `with`.

    Parameters
    ----------
    folder : Path
        Of the training.
    step : int
        Of the state that is taken up. Later rows and points, and a row cut short by a kill, go: they will be written again.
    tensorboard : bool
        Whether event files are written beside the CSV files.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool) -> None:
        self._steps, self._validation = (Curve(folder / name, step) for name in ("steps.csv", "validation.csv"))
        self._events: SummaryWriter | None = None
        self._folder = folder / "tensorboard" if tensorboard else None
        self._begun = step

    def __enter__(self) -> Self:
        with ExitStack() as open_files:
            for curve in (self._steps, self._validation):
                open_files.enter_context(curve)
            if self._folder is not None:
                from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (TensorBoard is optional)

                # TensorBoard then hides points that a kill left behind later than the state.
                self._events = open_files.enter_context(SummaryWriter(self._folder, purge_step=self._begun + 1))
            self._open_files = open_files.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_files.close()

    def learnt(self, step: int, losses: Mapping[str, float]) -> None:
        """Losses of a step."""
        self._steps.add(step, losses)
        self._draw("steps", step, losses)

    def validated(self, step: int, network: str, scores: Mapping[str, float]) -> None:
        """Mean scores of a network on the scenes held out."""
        self._validation.add(step, {"network": network, **scores})
        self._draw(f"validation/{network}", step, scores)
        if self._events is not None:
            # The state is saved next; what it counts as learnt must not be lost by a kill.
            self._events.flush()

    def _draw(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{group}/{name}", value, step)


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
