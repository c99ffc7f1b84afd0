"""What people see: progress bars on a terminal, log lines elsewhere, and short tables at the end."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hyperfuse.pipeline.progress import Pace

log = logging.getLogger(__name__)

_LOG_SECONDS = 10.0
_MEASURES = {
    "psnr_db": ("PSNR (dB)", 2), "psnr_max_db": ("PSNR max (dB)", 2), "sam_deg": ("SAM (deg)", 3), "ergas": ("ERGAS", 3),
    "ssim": ("SSIM", 4), "rmse": ("RMSE", 4), "cc": ("CC", 4), "seconds": ("s", 2), "peak_mb": ("MB", 0),
}  # fmt: skip
_LINE = ("ratio", "msi", "hsi_snr_db", "msi_snr_db", "planted")


class Display:
    """Progress on stderr, results on stdout."""

    def __init__(self, *, quiet: bool) -> None:
        # A table squeezed to 80 columns in a log file helps nobody.
        self._out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 180)
        terminal = Console(stderr=True)
        self._bars = (
            Progress(
                TextColumn("{task.description:12}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[pace]}"),
                console=terminal,
            )
            if terminal.is_terminal and not quiet
            else None
        )
        self._tasks: dict[str, Any] = {}
        self._logged = 0.0

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def progress(self, stage: str, done: int, total: int, pace: Pace | None = None) -> None:
        """See `pipeline.progress.Progress`."""
        if self._bars is None:
            now = time.monotonic()
            if done >= total or now - self._logged > _LOG_SECONDS:
                self._logged = now
                log.info("%s %d/%d%s", stage, done, total, f" ({pace})" if pace else "")
            return
        if stage not in self._tasks or (done <= 1 and self._bars.tasks[self._tasks[stage]].finished):
            self._tasks[stage] = self._bars.add_task(stage, total=total, pace="")
        self._bars.update(self._tasks[stage], completed=done, total=total, pace=str(pace or ""))

    def show_rows(self, rows: Iterable[tuple[str, str]]) -> None:
        """Names and values, a line each."""
        for name, value in rows:
            self.row(name, value)

    def show_table(self, table: Table) -> None:
        """A table, after an empty line."""
        self._out.print()
        self._out.print(table)

    def show_backlog(self, scenes: list[dict[str, Any]], *, most: int) -> None:
        """Scenes of an archive, a line each, up to so many."""
        if not scenes:
            return
        table = Table("scene", "state", "partner", "tried", "hours", "GB", "reason", box=None, pad_edge=False)
        for scene in scenes[:most]:
            table.add_row(
                scene["id"],
                scene["state"] + (f" ({scene['code']})" if scene["code"] else ""),
                scene["partner"] or "",
                str(scene["attempts"] or ""),
                f"{scene['hours']:.2f}" if scene["hours"] else "",
                f"{scene['gigabytes']:.2f}" if scene["gigabytes"] else "",
                escape(scene["reason"]),
            )
        self._out.print()
        self._out.print(table)
        if len(scenes) > most:
            self._out.print(f"and {len(scenes) - most} more; --json lists all")

    def show_evaluation(self, record: dict[str, Any]) -> None:
        """A table of rows and their means for each protocol; of planted pairs one of rows and methods."""
        if "field" in record:
            self._show_field(record)
            return
        measures = dict(_MEASURES)
        if any("over_noise" in row for row in record["rows"]):
            measures["over_noise"] = ("HSI / noise", 2)
        for protocol in record["protocols"]:
            hsi_db, msi_db = protocol["hsi_snr_db"], protocol["msi_snr_db"]
            noise = "no noise" if hsi_db is msi_db is None else f"noise {_shown(hsi_db)} / {_shown(msi_db)} dB"
            table = Table(
                "cube", "method", *(title for title, _ in measures.values()), box=None, pad_edge=False,
                title=f"ratio {protocol['ratio']}, MSI {protocol['msi']}, {noise}", title_justify="left",
            )  # fmt: skip
            failures = []
            for row in (*record["rows"], *record["means"]):
                if any(row[key] != protocol[key] for key in ("ratio", "msi", "hsi_snr_db", "msi_snr_db")):
                    continue
                if row["error"]:
                    failures.append(f"{row['cube']}, {row['method']}: {row['error']}")
                if row.get("cubes") != 1:  # the mean over one cube is its row
                    cells = [_shown(row.get(key), digits) for key, (_, digits) in measures.items()]
                    table.add_row(row["cube"], row["method"], *cells, style="bold" if row["cube"] == "mean" else None)
            self._out.print(table)
            for failure in failures:
                self._out.print(f"[yellow]{escape(failure)}[/yellow]", highlight=False)
            self._out.print()
        if record["figure"] is not None:
            self.row("figure", record["figure"])

    def _show_field(self, record: dict[str, Any]) -> None:
        methods = list(dict.fromkeys(row["method"] for row in record["field"]))
        lines: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
        for row in record["field"]:
            lines.setdefault(tuple(row[key] for key in _LINE), {})[row["method"]] = row
        for head in dict.fromkeys(key[:-1] for key in lines):
            table = Table(
                "planted", *methods, "cubes", box=None, pad_edge=False, title_justify="left",
                title=f"ratio {head[0]}, MSI {head[1]}, PSNR (dB) / SAM (deg), mean over cubes",
            )  # fmt: skip
            for key, cells in lines.items():
                if key[:-1] == head:
                    shown = [f"{_shown(cells[m]['psnr_db'], 2)} / {_shown(cells[m]['sam_deg'], 2)}" for m in methods]
                    table.add_row(key[-1], *shown, str(max(cell["cubes"] for cell in cells.values())))
            self._out.print(table)
            self._out.print()
        if record["beaten"]:
            self._show_beaten(record["beaten"])
        decided = {(row["cube"], row["ratio"], row.get("planted")): row["registration"]
                   for row in record["rows"] if "registration" in row}  # fmt: skip
        if decided:
            told = {"accept": "accepted", "warn": "accepted with a doubt", "refuse": "refused and kept"}
            counts = Counter(told[decision] for decision in decided.values())
            self.row("registration", ", ".join(f"{n} {decision}" for decision, n in counts.items()))
        self._show_failures(record, len(methods))

    def _show_failures(self, record: dict[str, Any], n_methods: int) -> None:
        failures: dict[tuple[str, ...], list[str]] = {}
        for row in record["rows"]:
            if row["error"]:
                failures.setdefault((row["cube"], row.get("planted", "nothing"), row["error"]), []).append(
                    row["method"]
                )
        for (cube, planted, error), failed in failures.items():
            which = "" if len(failed) >= n_methods else f" ({', '.join(failed)})"
            told = f"{cube}{'' if planted == 'nothing' else ', ' + planted}{which}: {error}"
            self._out.print(f"[yellow]{escape(told)}[/yellow]", highlight=False)
        if record["figure"] is not None:
            self.row("figure", record["figure"])

    def _show_beaten(self, beaten: list[dict[str, Any]]) -> None:
        table = Table("planted", "ratio", "MSI", "cube", "method", "PSNR / SAM", "of the default", box=None, pad_edge=False,
                      title="Better than the default in PSNR or SAM", title_justify="left")  # fmt: skip
        for row in beaten:
            scores = [f"{row[of + 'psnr_db']:.2f} / {row[of + 'sam_deg']:.2f}" for of in ("", "default_")]
            table.add_row(row["planted"], str(row["ratio"]), row["msi"], row["cube"], row["method"], *scores)
        self._out.print(table)

    def row(self, name: str, value: str, *, style: str = "") -> None:
        """A name and a value in one line."""
        # As text, not as markup: names of files may hold brackets.
        self._out.print(Text.assemble((f"{name:14}", "bold"), (value, style)), highlight=False)


def _shown(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return "none" if digits is None else "-"
    return f"{value:g}" if digits is None else f"{value:.{digits}f}"
