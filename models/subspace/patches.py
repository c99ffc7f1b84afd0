"""A sample of a scene in patches: neighbors stay together, so that what depends on them can be learned from it.

The patches lie on one lattice of the scene, and which ones are kept is decided by where they lie; so any windows whose
cores begin on the lattice, in any order, give the same sample. A scene of no more than `MOST` patches is taken whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from hyperfuse.models._moments import low_pass_margin
from hyperfuse.models.operators import blur_reach
from hyperfuse.models.spec import ModelSpec, Observed
from hyperfuse.models.subspace.guides import smooth_guides

EDGE = 16
"""Coarse pixels along the edge of a patch; more where blocks of MSI bands would be cut."""
MOST = 64
"""Patches that are kept."""
_ODD = 0x9E3779B1  # 2 ** 32 over the golden ratio: neighbors fall far apart (Knuth 1998, TAOCP 3, 6.4)
_WORD = 2**32


@dataclass(frozen=True, kw_only=True, eq=False)
class Patches:
    """Patches of both images."""

    hsi: torch.Tensor
    """Shape (M, C, e, e), float32; 0 where not valid."""
    guides: torch.Tensor
    """The MSI without blocks, shape (M, c, (e + 2 g) * ratio, (e + 2 g) * ratio), float32, with `margin` g around."""
    valid: torch.Tensor
    """Shape (M, e, e), bool."""
    margin: int
    """Coarse pixels of the MSI around a patch."""

    @classmethod
    def from_sums(cls, spec: ModelSpec, sums: Mapping[str, torch.Tensor] | None) -> Patches:
        """Patches from the merged result of `PatchPass.sums`.

        Raises
        ------
        ValueError
            If there are none, or too few valid pixels.
        """
        if sums is None or "guides" not in sums:
            raise ValueError(f"{spec.name} needs the sums of its first pass over the scene")
        valid = sums["valid"]
        if int(valid.sum()) < 16:
            raise ValueError(
                f"{spec.name} needs at least 16 coarse pixels that are valid in both images, found {int(valid.sum())}"
            )
        return cls(hsi=sums["hsi"], guides=sums["guides"], valid=valid, margin=_margin(spec.observed))


class PatchPass:
    """Patches of the scene; a `models.FirstPass` that merges by its own rule."""

    def __init__(self, spec: ModelSpec) -> None:
        self.observed = spec.observed
        self.margin = low_pass_margin(spec.observed)
        self.lattice = math.ceil(EDGE / spec.observed.whole_blocks) * spec.observed.whole_blocks

    def sums(
        self, hsi: torch.Tensor, msi: torch.Tensor, valid: torch.Tensor, origin: tuple[int, int] = (0, 0)
    ) -> dict[str, torch.Tensor]:
        """The window's part of the sample.

        Parameters
        ----------
        hsi, msi, valid, origin
            As for `models.FirstPass.sums`.

        Returns
        -------
        dict of str to Tensor
            `place` (M, 2) int64, row and column on the lattice; the fields of `Patches`.
        """
        edge, ratio, around = self.lattice, self.observed.ratio, _margin(self.observed)
        guides = smooth_guides(msi, self.observed)
        found: dict[str, list[torch.Tensor]] = {"place": [], "hsi": [], "guides": [], "valid": []}
        # Windows that begin or end amid a patch are filled up to whole ones.
        top, left = origin[0] % edge, origin[1] % edge
        height, width = hsi.shape[-2:]
        bottom, right = -(top + height) % edge, -(left + width) % edge
        hsi = pad(hsi * valid[:, None], (left, right, top, bottom))
        valid = pad(valid, (left, right, top, bottom))
        sides = (left + around, right + around, top + around, bottom + around)
        guides = pad(guides, tuple(side * ratio for side in sides), mode="replicate")
        for y in range(0, top + height, edge):
            for x in range(0, left + width, edge):
                here = valid[..., y : y + edge, x : x + edge]
                for image in range(hsi.shape[0]):
                    if not here[image].any():
                        continue
                    fine = (slice(y * ratio, (y + edge + 2 * around) * ratio),
                            slice(x * ratio, (x + edge + 2 * around) * ratio))  # fmt: skip
                    found["place"].append(torch.tensor([(origin[0] - top + y) // edge, (origin[1] - left + x) // edge]))
                    found["hsi"].append(hsi[image, :, y : y + edge, x : x + edge])
                    found["guides"].append(guides[image][(slice(None), *fine)])
                    found["valid"].append(here[image])
        if not found["place"]:
            size = (edge + 2 * around) * ratio
            return {
                "place": torch.zeros(0, 2, dtype=torch.int64), "hsi": hsi.new_zeros(0, hsi.shape[1], edge, edge),
                "guides": guides.new_zeros(0, guides.shape[1], size, size), "valid": valid.new_zeros(0, edge, edge),
            }  # fmt: skip
        return _kept({name: torch.stack(parts).cpu() for name, parts in found.items()})

    def merge(self, total: dict[str, torch.Tensor], part: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The sample of two sets of windows; a patch that both know parts of is joined."""
        both = {name: torch.cat([values, part[name]]) for name, values in total.items()}
        places, index = torch.unique(both["place"], dim=0, return_inverse=True)
        if len(places) < len(index):
            hsi = both["hsi"].new_zeros(len(places), *both["hsi"].shape[1:]).index_add_(0, index, both["hsi"])
            seen = torch.zeros(len(places), *both["valid"].shape[1:]).index_add_(0, index, both["valid"].float())
            guides = both["guides"].new_empty(len(places), *both["guides"].shape[1:])
            guides[index] = both["guides"]
            both = {"place": places, "hsi": hsi, "guides": guides, "valid": seen > 0}
        return _kept(both)


def _margin(observed: Observed) -> int:
    """Coarse pixels around a patch in which the HSI's PSF looks, as whole blocks of every MSI band."""
    shift = max(map(abs, observed.shift_px))
    reach = math.ceil(blur_reach(observed.ratio, observed.psf_sigma_px, shift) / observed.ratio)
    return math.ceil(reach / observed.whole_blocks) * observed.whole_blocks


def _kept(patches: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of the least keys, in the order of their keys."""
    y, x = patches["place"].T
    key = (y * 65537 + x) * _ODD % _WORD
    chosen = key.argsort(stable=True)[:MOST]
    return {name: values[chosen].contiguous() for name, values in patches.items()}
