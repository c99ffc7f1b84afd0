"""One estimate per detector: bands whose samples lie elsewhere are fused by themselves, each group where it was measured.

The spectrometers of one instrument, and the ends of one that has keystone, do not sample the same places. A method of this
package takes one displacement for all of its bands; here bands of about the same displacement become a pair of their own
with the whole MSI, and the results are put together. What the MSI lends does not suffer, for each band is regressed on it
anyway; what is lost is that the groups no longer share a subspace that takes noise from both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from hyperfuse.models._findings import Findings
from hyperfuse.models.spec import FirstPass, FusionModel, ModelSpec, Observed, merge_sums

TOLERANCE = 0.04
"""Coarse pixels from the mean of a group up to which a band belongs to it."""
MOST = 4
"""Groups; with more, all bands are taken to lie at the mean of their part of the range."""


def grouped(shifts: Sequence[tuple[float, float]]) -> list[list[int]]:
    """Indices of bands of about the same displacement, in ascending order of their first band."""
    points = torch.tensor(shifts, dtype=torch.float64).view(-1, 2)
    tolerance = TOLERANCE
    while True:
        groups = _within(points, tolerance)
        if len(groups) <= MOST:
            return groups
        tolerance *= 1.25


def _within(points: torch.Tensor, tolerance: float) -> list[list[int]]:
    groups: list[list[int]] = []
    centers: list[torch.Tensor] = []
    for band, point in enumerate(points):
        near = [float((point - center).norm()) for center in centers]
        if near and min(near) <= tolerance:
            at = near.index(min(near))
            groups[at].append(band)
            centers[at] = points[groups[at]].mean(dim=0)
        else:
            groups.append([band])
            centers.append(point)
    return groups


def of_group(observed: Observed, bands: Sequence[int]) -> Observed:
    """The pair of some bands, all displaced by their mean."""
    rows, cols = (sum(observed.hsi_shifts[band][axis] for band in bands) / len(bands) for axis in (0, 1))
    whole = len(bands) == observed.hsi_bands
    return replace(
        observed,
        hsi_bands=len(bands),
        hsi_shifts=((rows, cols),) * len(bands),
        # What a part of the spectrum sees of an MSI band is not what the band is.
        srf=observed.srf if whole else (),
    )


class GroupedPass:
    """The first passes of all groups; a `models.FirstPass`."""

    def __init__(self, passes: Sequence[FirstPass], groups: Sequence[Sequence[int]]) -> None:
        self._passes, self._groups = passes, groups
        self.margin = max(each.margin for each in passes)

    def sums(
        self, hsi: torch.Tensor, msi: torch.Tensor, valid: torch.Tensor, origin: tuple[int, int] = (0, 0)
    ) -> dict[str, torch.Tensor]:
        """See `models.FirstPass.sums`; names are prefixed by the number of the group."""
        return {
            f"{number}.{name}": value
            for number, (each, bands) in enumerate(zip(self._passes, self._groups, strict=True))
            for name, value in each.sums(hsi[:, list(bands)], msi, valid, origin).items()
        }

    def merge(self, total: dict[str, torch.Tensor], part: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Group by group, each by its own rule."""
        return {
            f"{number}.{name}": value
            for number, each in enumerate(self._passes)
            for name, value in merge_sums(each, of_number(total, number), of_number(part, number)).items()
        }


def of_number(sums: Mapping[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    """Sums of one group."""
    prefix = f"{number}."
    return {name.removeprefix(prefix): value for name, value in sums.items() if name.startswith(prefix)}


class GroupedModel:
    """The methods of all groups as one; a `models.FusionModel`."""

    def __init__(self, spec: ModelSpec, models: Sequence[FusionModel], groups: Sequence[Sequence[int]]) -> None:
        self.spec, self.models, self.groups = spec, models, groups
        bands = torch.tensor([band for group in groups for band in group])
        self._order = bands.argsort()

    def __call__(self, hsi: torch.Tensor, msi: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        """See `models.FusionModel`, and `models.ModelSpec.masked`."""
        fused = [model(hsi[:, list(bands)], msi, *masks) for model, bands in zip(self.models, self.groups, strict=True)]
        return torch.cat(fused, dim=1)[:, self._order.to(hsi.device)]

    def to(self, device: Any) -> GroupedModel:
        """Move the networks among the methods."""
        for model in self.models:
            if isinstance(model, torch.nn.Module):
                model.to(device)
        return self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Only where the methods themselves have one: they are looked for by name.
        own: dict[str, Callable[..., Any]] = {
            "standard_error": self._standard_error,
            "changed": self._changed,
            "findings": self._findings,
        }
        if name not in own or not all(hasattr(model, name) for model in self.models):
            raise AttributeError(name)
        return own[name]

    def _findings(self) -> tuple[Findings, ...]:
        return tuple(
            replace(found, bands=tuple(group[band] for band in found.bands))
            for model, group in zip(self.models, self.groups, strict=True)
            for found in cast("Any", model).findings()
        )

    def _standard_error(self) -> torch.Tensor:
        return torch.cat([cast("Any", model).standard_error() for model in self.models])[self._order]

    def _changed(self, hsi: torch.Tensor, msi: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        each = [
            cast("Any", model).changed(hsi[:, list(bands)], msi, *masks)
            for model, bands in zip(self.models, self.groups, strict=True)
        ]
        return torch.stack(each).any(dim=0)
