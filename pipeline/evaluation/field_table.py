"""The field protocol in two tables: methods over rows, and the cubes on which a method beats the default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.quality.trials import TrialRow

DEFAULT = "map_subspace"
"""Method that the others are held against."""
_OUTSIDE = " outside"


def field_summary(rows: Sequence[TrialRow]) -> dict[str, Any]:
    """Means over the cubes that all methods fused, and who is better than the default where.

    Returns
    -------
    dict
        `field`: a record per protocol and method with `planted`, `psnr_db`, `sam_deg` and `cubes`; what changed between
        the dates is scored as a whole, and outside of it in a record of its own. `beaten`: a record per protocol, cube
        and method with a higher PSNR or a lower SAM than the default, with both scores of both.
    """
    scored = [*rows, *(_outside(row) for row in rows if row.outside is not None)]
    groups: dict[Protocol, list[TrialRow]] = {}
    for row in scored:
        groups.setdefault(row.protocol, []).append(row)
    records = [record for protocol, group in groups.items() for record in _means(protocol, group)]
    beaten = [record for protocol, group in groups.items() for record in _beaten(protocol, group)]
    return {"field": records, "beaten": beaten}


def _outside(row: TrialRow) -> TrialRow:
    planted = replace(row.protocol.planted, name=row.protocol.planted.name + _OUTSIDE)
    return replace(row, scores=row.outside, outside=None, protocol=replace(row.protocol, planted=planted))


def _of(protocol: Protocol) -> dict[str, Any]:
    return {
        "ratio": protocol.ratio,
        "msi": protocol.msi,
        "hsi_snr_db": protocol.hsi_snr_db,
        "msi_snr_db": protocol.msi_snr_db,
        "planted": protocol.planted.name,
    }


def _means(protocol: Protocol, group: list[TrialRow]) -> list[dict[str, Any]]:
    methods = list(dict.fromkeys(row.method for row in group))
    failed = {row.cube for row in group if row.scores is None}
    # A mean over other cubes than the next method's cannot be compared with it.
    whole = [row for row in group if row.cube not in failed]
    records = []
    for method in methods:
        scores = [row.scores for row in whole if row.method == method and row.scores is not None]
        records.append(
            {
                **_of(protocol),
                "method": method,
                "psnr_db": float(np.mean([each.psnr_db for each in scores])) if scores else None,
                "sam_deg": float(np.mean([each.sam_deg for each in scores])) if scores else None,
                "cubes": len(scores),
            }
        )
    return records


def _beaten(protocol: Protocol, group: list[TrialRow]) -> list[dict[str, Any]]:
    ours = {row.cube: row.scores for row in group if row.method == DEFAULT and row.scores is not None}
    found = []
    for row in group:
        own = ours.get(row.cube)
        if own is None or row.scores is None or row.method == DEFAULT:
            continue
        if row.scores.psnr_db > own.psnr_db or row.scores.sam_deg < own.sam_deg:
            found.append(
                {
                    **_of(protocol),
                    "cube": row.cube,
                    "method": row.method,
                    "psnr_db": row.scores.psnr_db,
                    "sam_deg": row.scores.sam_deg,
                    "default_psnr_db": own.psnr_db,
                    "default_sam_deg": own.sam_deg,
                }
            )
    return found
