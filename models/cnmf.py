"""Coupled nonnegative matrix factorization (CNMF).

Paper: Yokoya, Yairi & Iwasaki (2012), Coupled nonnegative matrix factorization unmixing for hyperspectral and
multispectral data fusion, IEEE TGRS 50(2), 528-537; its updates: Lee & Seung (2001), Algorithms for non-negative matrix
factorization, NIPS 13, 556-562; first endmembers: Araujo et al. (2001), The successive projections algorithm for variable
selection in spectroscopic multicomponent analysis, Chemometrics and Intelligent Laboratory Systems 57(2), 65-73.
Code: written from the papers for HyperFuse, Apache-2.0.

Both images are mixtures of the same endmembers. The fused pixel mixes the HSI's endmember spectra in the abundances that
the MSI shows, which begin as those of the coarse pixel.

Notes
-----
Departures from the paper, which alternates between the two whole images:

- Endmembers are the scene's: they are found on at most `SAMPLE` coarse pixels, drawn by a hash of their spectra, so that
  any order and size of windows draws the same ones. A scene of no more pixels is taken whole.
- There the two factorizations are one: HSI and degraded MSI, stacked, share their abundances. With the endmembers so
  fixed, a tile unmixes its coarse pixels, interpolates the abundances, and lets the MSI refine them, each pixel alone.
- The MSI's endmembers are fitted with the HSI's, so neither a spectral response nor equal units are needed.
- First endmembers come from successive projections in the subspace of `ENDMEMBERS` principal directions in place of
  vertex component analysis, which draws random directions; there is no random number here.
- Abundances need not sum to 1: shade and slope scale whole spectra, and on seven real cubes (ratio 4, 35/40 dB) the
  paper's constraint, as strong as the data, costs 3 dB.
- Reflectance below 0 counts as 0 in the unmixing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from hyperfuse.models._moments import low_pass_margin, transfer_to_coarser
from hyperfuse.models.operators import upsample
from hyperfuse.models.spec import MethodCard, ModelSpec, Observed
from hyperfuse.models.subspace.guides import degrade_guides, sharpen_guides, sharpened_reach, smooth_guides

CARD = MethodCard(
    title="Coupled nonnegative matrix factorization",
    paper="Yokoya, Yairi & Iwasaki (2012), Coupled nonnegative matrix factorization unmixing for hyperspectral and "
    "multispectral data fusion, doi:10.1109/TGRS.2011.2161320",
    code="HyperFuse, Apache-2.0, from the paper alone",
)
ENDMEMBERS = 30
"""Endmembers, p; fewer if the HSI has not as many bands."""
SAMPLE = 2048
"""Coarse pixels on which endmembers are found."""
REFINEMENTS = 200
"""Updates of the endmembers, each followed by one of the sample's abundances."""
UNMIXING = 200
"""Updates of a coarse pixel's abundances."""
SHARPENING = 300
"""Updates of a fine pixel's abundances; few MSI bands do not determine them, so they keep what the coarse pixel says."""
_SEED = 1e-6
"""Least abundance from which the MSI's updates begin: from 0 they could not grow."""
_FEWEST = 16
"""Coarse pixels below which there is nothing to unmix."""
_ODD = 0x2545F4914F6CDD1D
"""An odd number of evenly mixed bits, the multiplier of xorshift* (Vigna 2016)."""
_TINY = 1e-12
"""Keeps quotients of the updates defined where all is dark."""


class SamplePass:
    """Spectra of both images in a sample of valid coarse pixels; a `models.FirstPass` that merges by its own rule."""

    def __init__(self, spec: ModelSpec) -> None:
        self.observed = spec.observed
        self.margin = low_pass_margin(spec.observed)

    def sums(
        self,
        hsi: torch.Tensor,
        msi: torch.Tensor,
        valid: torch.Tensor,
        origin: tuple[int, int] = (0, 0),  # noqa: ARG002 (it matters not where)
    ) -> dict[str, torch.Tensor]:
        """The window's part of the sample.

        Parameters
        ----------
        hsi, msi, valid : Tensor
            As for `models.FirstPass.sums`.

        Returns
        -------
        dict of str to Tensor
            `key` (n,) int64, `hsi` (n, C) and degraded `msi` (n, c) float32, in the order of their keys, n <= `SAMPLE`.
        """
        low = degrade_guides(smooth_guides(msi, self.observed), self.observed)
        spectra = hsi.movedim(1, -1)[valid].contiguous()
        return _first({"key": _keys(spectra), "hsi": spectra, "msi": low.movedim(1, -1)[valid]})

    def merge(self, total: dict[str, torch.Tensor], part: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The sample of two sets of windows: the pixels of the least keys of both."""
        return _first({name: torch.cat([values, part[name]]) for name, values in total.items()})


class CNMF:
    """Fused = endmembers @ abundances, which are the coarse pixel's, interpolated and refined on the MSI."""

    def __init__(self, spec: ModelSpec, sample: Mapping[str, torch.Tensor]) -> None:
        self.spec = spec
        hsi, msi = (sample[name].double().T.clamp_min(0) for name in ("hsi", "msi"))
        self._transfer = transfer_to_coarser(
            msi.mean(dim=1), torch.cov(msi, correction=0).view(len(msi), -1), spec.observed
        )
        # Both images weigh alike, whatever their units.
        self._units = [float(image.square().mean().sqrt().clamp_min(_TINY)) for image in (hsi, msi)]
        spectra = torch.cat([image / unit for image, unit in zip((hsi, msi), self._units, strict=True)])
        endmembers = _refined(spectra, spectra[:, _purest(spectra[: len(hsi)])]).float()  # (C + c, p)
        self._hsi_endmembers, self._msi_endmembers = endmembers.split([len(hsi), len(msi)])

    def __call__(self, hsi: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:
        """See `models.FusionModel`."""
        observed = self.spec.observed
        hsi_endmembers, msi_endmembers = self._hsi_endmembers.to(hsi), self._msi_endmembers.to(hsi)
        coarse = (hsi / self._units[0]).clamp_min(0).flatten(2)  # (N, C, h * w)
        even = torch.full_like(coarse[:, :1], 1 / hsi_endmembers.shape[1]).expand(-1, hsi_endmembers.shape[1], -1)
        abundances = _unmixed(coarse, hsi_endmembers, even, UNMIXING).unflatten(2, hsi.shape[-2:])
        start = upsample(abundances, observed.ratio).clamp_min(_SEED).flatten(2)  # (N, p, H * W)
        bands = sharpen_guides(smooth_guides(msi, observed), self._transfer, observed)
        fine = (bands / self._units[1]).clamp_min(0).flatten(2)
        abundances = _unmixed(fine, msi_endmembers, start, SHARPENING)
        fused: torch.Tensor = hsi_endmembers * self._units[0] @ abundances
        return fused.view(*fused.shape[:2], *msi.shape[-2:])


def specify(observed: Observed) -> ModelSpec:
    """Needs: the cubic kernel's two coarse pixels for the abundances, what MSI bands lend, and endmembers of the scene."""
    around = sharpened_reach(observed)  # fine pixels
    return ModelSpec(
        name="cnmf",
        observed=observed,
        halo=2 + math.ceil(around / observed.ratio),
        hsi_reach=2,
        msi_reach=around,
        multiple_of=observed.whole_blocks,
        needs_first_pass=True,
        band_copies=1.2,
        work_floats=11 * ENDMEMBERS,
    )


def first_pass(
    spec: ModelSpec,
    weights: Mapping[str, torch.Tensor] | None = None,  # noqa: ARG001 (has none)
) -> SamplePass:
    """Spectra of both images in a sample of coarse pixels."""
    return SamplePass(spec)


def build(
    spec: ModelSpec,
    sums: Mapping[str, torch.Tensor] | None,
    weights: Mapping[str, torch.Tensor] | None = None,  # noqa: ARG001 (has none)
) -> CNMF:
    """The method, ready to run; see `models.spec.Method.build`."""
    if sums is None or not {"hsi", "msi"} <= set(sums):
        raise ValueError(f"{spec.name} needs the sums of its first pass over the scene")
    if len(sums["hsi"]) < _FEWEST:
        raise ValueError(
            f"{spec.name} needs at least {_FEWEST} coarse pixels that are valid in both images, found {len(sums['hsi'])}"
        )
    return CNMF(spec, sums)


def _purest(spectra: torch.Tensor) -> torch.Tensor:
    """Indices (p,) of the pixels of spectra (C, n) that successive projections take for the endmembers."""
    count = min(ENDMEMBERS, *spectra.shape)
    _, directions = torch.linalg.eigh(spectra @ spectra.T)  # ascending
    rest = directions[:, -count:].T @ spectra
    picked = []
    for _ in range(count):
        lengths = torch.linalg.vector_norm(rest, dim=0)
        picked.append(int(lengths.argmax()))
        direction = rest[:, picked[-1]] / lengths[picked[-1]].clamp_min(_TINY)
        rest = rest - torch.outer(direction, direction @ rest)
    return torch.tensor(picked)


def _refined(spectra: torch.Tensor, endmembers: torch.Tensor) -> torch.Tensor:
    """Endmembers (C + c, p) after alternating updates on the sample's spectra (C + c, n)."""
    endmembers = endmembers.clamp_min(_SEED)
    even = torch.full((endmembers.shape[1], spectra.shape[1]), 1 / endmembers.shape[1]).to(spectra)
    abundances = _unmixed(spectra, endmembers, even, UNMIXING)
    for _ in range(REFINEMENTS):
        explained = endmembers @ (abundances @ abundances.T)
        endmembers = endmembers * (spectra @ abundances.T) / explained.clamp_min(_TINY)
        abundances = _unmixed(spectra, endmembers, abundances, 1)
    return endmembers


def _unmixed(spectra: torch.Tensor, endmembers: torch.Tensor, start: torch.Tensor, n_updates: int) -> torch.Tensor:
    """Abundances (..., p, n) after multiplicative updates towards least squares of spectra (..., b, n)."""
    wanted, gram = endmembers.T @ spectra, endmembers.T @ endmembers
    abundances = start
    for _ in range(n_updates):
        abundances = abundances * wanted / (gram @ abundances).clamp_min(_TINY)
    return abundances


def _keys(spectra: torch.Tensor) -> torch.Tensor:
    """A hash of each spectrum's bits, (n, C) float32 to (n,) int64: sorting by it shuffles pixels the same way always."""
    bits = spectra.view(torch.int32).long()
    place = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    keys = (bits * (place * _ODD | 1)).sum(dim=1)  # wraps, as a hash may
    keys = (keys ^ (keys >> 31)) * _ODD
    return keys ^ (keys >> 29)


def _first(sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    order = torch.argsort(sample["key"], stable=True)[:SAMPLE]
    return {name: values[order] for name, values in sample.items()}
