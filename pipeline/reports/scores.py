"""The figures of `qa.json` by which products are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Score:
    """One figure."""

    key: str
    """Its place in `qa.json`, dotted; `reduced.` stands for the row of the product's own method at reduced resolution."""
    title: str
    """Name in words, with the unit."""
    best: Literal["low", "high", "zero"]
    """Whether lower, higher, or closer to zero is better."""
    share: bool = False
    """Whether it is shown in percent."""


SCORES = (
    Score(key="consistency.hsi.sam_deg", title="spectral angle to the HSI (deg)", best="low"),
    Score(key="consistency.hsi.rmse", title="RMSE to the HSI", best="low"),
    Score(key="consistency.hsi.bias", title="bias to the HSI", best="zero"),
    Score(key="consistency.msi.r2", title="R2 with the MSI", best="high"),
    Score(key="consistency.msi.rmse", title="RMSE to the MSI", best="low"),
    Score(key="seams.score", title="gradient across tile borders, less that beside them", best="zero"),
    Score(key="no_reference.d_lambda_k", title="spectral distortion D_lambda^K", best="low"),
    Score(key="no_reference.d_s", title="spatial distortion D_s", best="low"),
    Score(key="no_reference.hqnr", title="HQNR", best="high"),
    Score(key="reduced.psnr_db", title="PSNR at reduced resolution (dB)", best="high"),
    Score(key="reduced.sam_deg", title="SAM at reduced resolution (deg)", best="low"),
    Score(key="reduced.ergas", title="ERGAS at reduced resolution", best="low"),
    Score(key="reduced.ssim", title="SSIM at reduced resolution", best="high"),
    Score(key="reduced.seconds", title="seconds for that fusion", best="low"),
    Score(key="validity.valid", title="valid samples", best="high", share=True),
)
"""In the order in which they are shown."""


def read_scores(qa: dict[str, Any] | None, method: str) -> dict[str, float | str | None]:
    """State and scores of a product by their keys; None where not measured.

    Parameters
    ----------
    qa : dict or None
        Content of `qa.json`.
    method : str
        The product's method; selects the row at reduced resolution.
    """
    state: dict[str, float | str | None] = {"state": None if qa is None else str(qa["state"])}
    return state | {score.key: None if qa is None else _looked_up(qa, place(qa, method, score)) for score in SCORES}


def place(qa: dict[str, Any], method: str, score: Score) -> str | None:
    """Dotted place of a score in `qa.json`, None if the method has no row at reduced resolution."""
    part, _, name = score.key.partition(".")
    if part != "reduced":
        return score.key
    rows = qa["reduced_resolution"]["rows"]
    row = next((k for k, row in enumerate(rows) if row["method"] == method), None)
    return None if row is None else f"reduced_resolution.rows.{row}.{name}"


def best(score: Score, values: list[float | None]) -> set[int]:
    """Positions of the best products; empty where fewer than two were measured or all are equal."""
    known = [value for value in values if value is not None]
    if len(known) < 2 or len(set(known)) == 1:
        return set()
    ranked = {"low": lambda v: v, "high": lambda v: -v, "zero": abs}[score.best]
    top = min(map(ranked, known))
    return {k for k, value in enumerate(values) if value is not None and ranked(value) == top}


def _looked_up(record: Any, key: str | None) -> float | None:
    """The figure at a dotted place; None where a part of it is None."""
    if key is None:
        return None
    for part in key.split("."):
        if record is None:
            return None
        record = record[int(part)] if isinstance(record, list) else record.get(part)
    return record if record is None else (record if isinstance(record, int) else float(record))
