"""Mean scores over cubes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.quality.metrics import Scores
from hyperfuse.pipeline.quality.trials import OUTSIDE, TrialRow


def means(rows: Sequence[TrialRow]) -> list[dict[str, Any]]:
    """Mean scores of each method under each protocol, over the cubes that it fused."""
    groups: dict[tuple[Protocol, str], list[TrialRow]] = {}
    for row in rows:
        groups.setdefault((row.protocol, row.method), []).append(row)
    found = []
    for (protocol, name), group in groups.items():
        done = [row for row in group if row.scores is not None]
        record = TrialRow(cube="mean", method=name, protocol=protocol).to_json()
        for key in [*(each.name for each in fields(Scores)), "rmse_own_unit"] if done else ():
            values = [value for row in done if (value := row.to_json()[key]) is not None]
            record[key] = float(np.mean(values)) if values else None
        record["seconds"] = round(float(np.mean([row.seconds for row in done])), 3) if done else None
        record["peak_mb"] = round(max(row.peak_bytes for row in done) / 1e6, 1) if done else None
        for key in (OUTSIDE + "psnr_db", OUTSIDE + "sam_deg"):
            if outside := [row.to_json()[key] for row in done if row.outside is not None]:
                record[key] = float(np.mean(outside))
        if over := [row.over_noise for row in done if row.over_noise is not None]:
            record["over_noise"] = round(max(over), 4)
        record["cubes"] = len(done)
        record["error"] = f"failed on {len(group) - len(done)} of {len(group)}" if len(done) < len(group) else None
        found.append(record)
    return found
