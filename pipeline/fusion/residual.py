"""What was decided of a job's learned residual, and so which weights its method may use; `pipeline.quality.residual_decision` decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from hyperfuse.pipeline.fusion.weights import WEIGHTS
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.seals import read_record

FILE = "gate.json"


class GateRecord(BaseModel):
    """The decision, and what it rests on."""

    model_config = ConfigDict(frozen=True)

    applied: bool
    """Whether the residual is applied."""
    reason: str
    """In words."""
    psnr_db: tuple[float, float] | None = None
    """With the residual and without, at reduced resolution; None if nothing was tried."""
    sam_deg: tuple[float, float] | None = None
    """Likewise."""
    window_px: tuple[int, int, int, int] | None = None
    """Coarse pixels that were tried: first and last row, first and last column, the last ones excluded."""

    @property
    def sentence(self) -> str:
        """The decision and its reason."""
        return f"{'applied' if self.applied else 'not applied'}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """Plain record, with the sentence."""
        return self.model_dump(mode="json") | {"sentence": self.sentence}


def load_gate(job: StagedJob) -> GateRecord | None:
    """What was decided; None if there was nothing to decide, or nothing is decided yet."""
    found = read_record(job.folder / FILE)
    return None if found is None else GateRecord.model_validate_json(found)


def admitted(job: StagedJob) -> bool:
    """Whether the job's network may use its weights."""
    record = load_gate(job)
    return record is None or record.applied


def weights_of(job: StagedJob) -> dict[str, Path]:
    """The job's copy of its network's weights by the network's name; empty if it needs none, or may not use them."""
    return {} if job.record.weights is None or not admitted(job) else {job.config.method: job.folder / WEIGHTS}
