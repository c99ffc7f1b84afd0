"""What a job's method found out about the pair on the scene itself, written once beside its sums.

The process that loads the method first writes it; where none did on this machine, it is read from a method loaded for that.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, cast

import torch

from hyperfuse.models import FusionModel
from hyperfuse.models._findings import Findings
from hyperfuse.pipeline.fusion.method import build_model
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.seals import read_record, write_record
from hyperfuse.pipeline.observation.psf import Psf

METHOD = "method.json"
"""File of the findings in the job's folder: one per group of bands that are fused together."""

_ALIKE_PX = 0.02
"""Coarse pixels within which bands are looked at together."""


def keep_findings(job: StagedJob, model: FusionModel) -> None:
    """Write what the loaded method of a job found, if it finds anything and that is not done."""
    if hasattr(model, "findings") and read_record(job.folder / METHOD) is None:
        found = cast("Any", model).findings()
        write_record(job.folder / METHOD, json.dumps({"groups": [asdict(one) for one in found]}))


def load_findings(job: StagedJob) -> tuple[Findings, ...]:
    """What the method found; empty if it is one that looks for nothing."""
    path = job.folder / METHOD
    if (
        (found := read_record(path)) is None
        and job.spec.needs_first_pass
        and (job.folder / "sums.safetensors").is_file()
    ):
        keep_findings(job, build_model(job, torch.device("cpu")))
        found = read_record(path)
    return () if found is None else tuple(_read(one) for one in json.loads(found)["groups"])


def _read(one: dict[str, Any]) -> Findings:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in one.items()}
    return Findings(**values)


def band_psfs(job: StagedJob) -> list[tuple[tuple[int, ...], Psf]]:
    """Groups of bands and the PSF through which the HSI sees them, as the method refined it, else as staging measured it."""
    # Back-projection has made a strict product agree through the PSF that staging measured.
    found = () if job.config.strict else load_findings(job)
    if found:
        return [(one.bands, Psf(one.sigma_px, *one.shift_px)) for one in found]
    shifts = job.spec.observed.hsi_shifts
    if not shifts:
        return [(tuple(range(len(job.bands))), job.observation.hsi_psf)]
    groups: dict[tuple[int, ...], list[int]] = {}
    for band, shift in enumerate(shifts):
        groups.setdefault(tuple(round(along / _ALIKE_PX) for along in shift), []).append(band)
    ratio, sigma = job.grids.ratio, job.observation.psf_sigma_px
    return [
        (tuple(bands), Psf(sigma, *(ratio * sum(shifts[b][axis] for b in bands) / len(bands) for axis in (0, 1))))
        for bands in groups.values()
    ]
