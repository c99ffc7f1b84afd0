"""A pair as methods see it: windows of both images, holes filled, the rim repeated, in the range that the method wants.

    a job's staged arrays (`StagedPair`)  or  a simulated pair in memory (`PairInMemory`)  ->  `PairWindow`

What a window holds is decided here and nowhere else, so that a trial, a gate or an evaluation fuses what tiles fuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch.nn.functional import max_pool2d, pad

from hyperfuse.models import ModelSpec
from hyperfuse.models.spec import FirstPass, merge_sums
from hyperfuse.pipeline.fusion.fill import Filler, FillPass, fill_reach
from hyperfuse.pipeline.geometry.box import Box, blocks_of
from hyperfuse.pipeline.geometry.tiling import Tile
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.stage import HSI_CHUNK
from hyperfuse.pipeline.observation.column_gains import gains_of_sample
from hyperfuse.pipeline.observation.psf import Psf
from hyperfuse.pipeline.observation.sample import NotEstimable, Sample
from hyperfuse.pipeline.observation.simulate import SimulatedPair
from hyperfuse.pipeline.pipelining import convey
from hyperfuse.pipeline.progress import Progress, silent

F32 = NDArray[np.float32]
FILL = "fill.safetensors"
"""Moments from which the holes of a job's pair are filled, where they are."""


@dataclass(frozen=True, kw_only=True)
class PairWindow:
    """One window of both images."""

    hsi: torch.Tensor
    """Filled, shape (1, C, h, w), float32."""
    msi: torch.Tensor
    """Filled, shape (1, c, h * ratio, w * ratio), float32."""
    hsi_valid: torch.Tensor
    """Per band, shape (1, C, h, w), bool."""
    msi_valid: torch.Tensor
    """In all bands, shape (1, 1, h * ratio, w * ratio), bool."""

    @property
    def masks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where all bands of each image are valid, shapes (1, 1, h, w) and (1, 1, h * ratio, w * ratio)."""
        return self.hsi_valid.all(dim=1, keepdim=True), self.msi_valid


@dataclass(frozen=True, kw_only=True, eq=False)
class _Image:
    """One image of a pair, wherever its samples lie."""

    read: Callable[[Box], F32]
    """Samples of a box inside it, shape (band, y, x), NaN where they are not valid."""
    shape: tuple[int, int]
    """Rows and columns."""
    fill: torch.Tensor
    """What takes the place of samples that are not valid, shape (1, band, 1, 1), in the radiometry in which methods see it."""

    def repeated(self, box: Box) -> torch.Tensor:
        """Samples of a box that may reach beyond the rim, where the outermost pixel is repeated, shape (1, band, y, x)."""
        height, width = self.shape
        inside = Box(y0=max(box.y0, 0), y1=min(box.y1, height), x0=max(box.x0, 0), x1=min(box.x1, width))
        cube = torch.from_numpy(self.read(inside))[None]
        rim = (inside.x0 - box.x0, box.x1 - inside.x1, inside.y0 - box.y0, box.y1 - inside.y1)
        return pad(cube, rim, mode="replicate") if any(rim) else cube


class PairWindows:
    """Windows of a pair, in coarse pixels; they may reach beyond the rim, where the outermost pixel is repeated.

    Parameters
    ----------
    spec : ModelSpec
        The method's needs.
    hsi, msi : _Image
        A hole is filled with the mean of the whole image: the same value in every window that sees it.
    span : (float, float)
        Smallest and largest sample of the HSI, which a method of symmetric range sees as -1 and 1.
    harmonized : callable, optional
        Brings samples of the MSI to the radiometry of the HSI.
    """

    def __init__(
        self,
        spec: ModelSpec,
        hsi: _Image,
        msi: _Image,
        *,
        span: tuple[float, float],
        harmonized: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.spec = spec
        self._hsi, self._msi, self._ratio = hsi, msi, spec.observed.ratio
        self._span = span if spec.symmetric_range else None
        self._harmonized = harmonized
        self.filler: Filler | None = None
        """Fills holes from their surroundings; without one, the mean of the image is filled in."""

    @property
    def shape(self) -> tuple[int, int]:
        """Coarse pixels of the pair."""
        return self._hsi.shape

    @property
    def whole(self) -> Box:
        """The window of the whole pair, as large as the method wants it."""
        height, width = (-(-size // self.spec.multiple_of) * self.spec.multiple_of for size in self.shape)
        return Box(y0=0, y1=height, x0=0, x1=width)

    def read(self, box: Box) -> PairWindow:
        """A window in coarse pixels."""
        if self.filler is None:
            return self._read(box)
        around = self._read(box.grown(margin := self.filler.reach))
        crop = Box(y0=margin, y1=margin + box.shape[0], x0=margin, x1=margin + box.shape[1])
        hsi, msi = self.filler.fill(around.hsi, around.msi, around.hsi_valid, around.msi_valid)
        coarse, fine = (..., *crop.slices), (..., *crop.times(self._ratio).slices)
        return PairWindow(
            hsi=hsi[coarse],
            msi=msi[fine],
            hsi_valid=around.hsi_valid[coarse],
            msi_valid=around.msi_valid[fine],
        )

    def fill_sums(self, progress: Progress = silent) -> dict[str, torch.Tensor]:
        """What the filler of this pair is made of: moments of both images, as the method sees them."""
        return scene_sums(self, FillPass(self.spec.observed), progress)

    def _read(self, box: Box) -> PairWindow:
        hsi, msi = self._hsi.repeated(box), self._msi.repeated(box.times(self._ratio))
        hsi_valid, msi_valid = torch.isfinite(hsi), torch.isfinite(msi)
        seen = msi if self._harmonized is None else self._harmonized(msi)
        return PairWindow(
            hsi=self._scaled(torch.where(hsi_valid, hsi, self._hsi.fill)),
            msi=self._scaled(torch.where(msi_valid, seen, self._msi.fill)),
            hsi_valid=hsi_valid,
            msi_valid=msi_valid.all(dim=1, keepdim=True),
        )

    def features(self, box: Box) -> torch.Tensor | None:  # noqa: ARG002 (that of a job's pair looks there)
        """Features of the coarse pass under a window, shape (1, channels, h * rate, w * rate); None if there was no such pass."""
        return None

    @property
    def unscaling(self) -> tuple[float, float]:
        """Gain and offset from the range that the method wants to the HSI's unit."""
        if self._span is None:
            return 1.0, 0.0
        low, high = self._span
        return (high - low) / 2.0, (high + low) / 2.0

    def _scaled(self, image: torch.Tensor) -> torch.Tensor:
        if self._span is None:
            return image
        low, high = self._span
        return (image - low) * (2.0 / (high - low)) - 1.0


class PairInMemory(PairWindows):
    """A simulated pair, or one at reduced resolution."""

    def __init__(self, pair: SimulatedPair, spec: ModelSpec) -> None:
        known = pair.hsi[np.isfinite(pair.hsi)]
        span = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        super().__init__(spec, _in_memory(_destriped(pair)), _in_memory(pair.msi), span=span)
        if spec.is_filled and not (np.isfinite(pair.hsi).all() and np.isfinite(pair.msi).all()):
            self.filler = Filler.from_sums(spec.observed, self.fill_sums())


class StagedPair(PairWindows):
    """Opened staged arrays of a job."""

    def __init__(self, job: StagedJob) -> None:
        self._job = job
        features = job.folder / "stage" / "features.zarr"
        self._features = store.open_array(features) if (job.folder / "features.json").is_file() else None
        sums = job.staged.hsi, job.staged.msi
        harmony = job.staged.harmony

        def harmonized(msi: torch.Tensor) -> torch.Tensor:
            """The MSI in the radiometry of the HSI, as far as the pair told."""
            if harmony is None or not harmony.is_applied:
                return msi
            return (msi - torch.from_numpy(harmony.offset)) / torch.from_numpy(harmony.gain)

        def image(role: str, kept: list[int], fill: torch.Tensor) -> _Image:
            array, bands = store.open_array(job.folder / "stage" / f"{role}.zarr"), np.array(kept)
            height, width = array.shape[-2:]
            return _Image(read=lambda box: store.read(array, box, bands), shape=(height, width), fill=fill)

        hsi_mean, msi_mean = (torch.tensor(image.mean, dtype=torch.float32)[None, :, None, None] for image in sums)
        super().__init__(
            job.spec,
            image("hsi", sums[0].kept, hsi_mean),
            image("msi", sums[1].kept, harmonized(msi_mean)),
            span=(sums[0].low, sums[0].high),
            harmonized=harmonized,
        )
        self._all_valid = all(image.valid_fraction == 1.0 for image in sums)
        if (moments := job.folder / FILL).is_file():
            self.filler = Filler.from_sums(job.spec.observed, load_file(moments))

    def features(self, box: Box) -> torch.Tensor | None:
        """See `PairWindows.features`."""
        rates = self.spec.two_rate
        if rates is None:
            return None
        assert self._features is not None  # noqa: S101 (the coarse pass comes before any tile)
        return torch.from_numpy(store.read(self._features, box.times(rates.rate)))[None]

    def valid(self, tile: Tile) -> torch.Tensor | None:
        """Pixels of a tile's core that no invalid input reached, shape (band or 1, y, x), bool; None if that is all of them."""
        if self._all_valid:
            return None
        core, lead = tile.core, self._job.grids.lead
        return self._valid(Box(y0=core.y0 + lead[0], y1=core.y1 + lead[0], x0=core.x0 + lead[1], x1=core.x1 + lead[1]))

    def valid_under(self, box: Box) -> torch.Tensor:
        """Fine pixels of a window in coarse pixels that the product will hold in all bands, shape (y, x), bool."""
        fine, (top, left), (height, width) = box.times(self._ratio), self._job.grids.lead, self._job.grids.product.shape
        valid = self._valid(fine).all(dim=0)
        inside = torch.zeros_like(valid)
        inside[
            max(top - fine.y0, 0) : max(top + height - fine.y0, 0),
            max(left - fine.x0, 0) : max(left + width - fine.x0, 0),
        ] = True
        return valid & inside

    def _valid(self, fine: Box) -> torch.Tensor:
        """Pixels of a box on the fine grid that no invalid input reached, shape (band or 1, y, x), bool."""
        spec = self.spec
        if self._all_valid:
            return torch.ones((1, *fine.shape), dtype=torch.bool)
        coarse = Box(
            y0=fine.y0 // self._ratio,
            y1=-(-fine.y1 // self._ratio),
            x0=fine.x0 // self._ratio,
            x1=-(-fine.x1 // self._ratio),
        )
        hsi_reach, msi_reach = spec.void_reach
        hsi = torch.isfinite(self._hsi.repeated(coarse.grown(hsi_reach)))
        valid = _eroded(hsi.all(dim=1, keepdim=True) if spec.mixes_bands else hsi, hsi_reach)
        valid = valid.repeat_interleave(self._ratio, dim=-2).repeat_interleave(self._ratio, dim=-1)
        y, x = fine.y0 - coarse.y0 * self._ratio, fine.x0 - coarse.x0 * self._ratio
        valid = valid[0, :, y : y + fine.shape[0], x : x + fine.shape[1]]
        if msi_reach is None:
            return valid
        msi = torch.isfinite(self._msi.repeated(fine.grown(msi_reach)))
        return valid & _eroded(msi.all(dim=1, keepdim=True), msi_reach)[0]


def _destriped(pair: SimulatedPair) -> F32:
    """The HSI without the stripes that the pair shows, as staging takes them out."""
    if pair.bands is None:
        return pair.hsi
    seen = pair.observed
    own = seen.msi_sigma_px or (0.0,) * seen.msi_bands
    blocks = tuple(
        math.hypot(sigma, math.sqrt((step**2 - 1) / 12)) for sigma, step in zip(own, seen.steps, strict=True)
    )
    try:
        sample = Sample.of(pair.hsi[None], pair.msi[None], seen.ratio, blocks)
    except NotEstimable:
        return pair.hsi
    gains = gains_of_sample(sample, Psf(seen.psf_sigma_px, *seen.shift_px), pair.bands[0].center_nm)
    return pair.hsi if gains is None else (pair.hsi / gains[:, None, :]).astype(np.float32)


def scene_sums(pair: PairWindows, summed: FirstPass, progress: Progress = silent) -> dict[str, torch.Tensor]:
    """What a method wants to know of a whole pair before its first window, from windows of it."""
    ratio, step, (rows, cols) = pair.spec.observed.ratio, pair.spec.multiple_of, pair.shape
    lattice = getattr(summed, "lattice", step)
    # Not as large as tiles: what is summed must not depend on how the scene is tiled.
    blocks = list(blocks_of((rows, cols), max(HSI_CHUNK // lattice, 1) * lattice))
    total: dict[str, torch.Tensor] = {}

    def load(block: Box) -> tuple[Box, Box, PairWindow]:
        # The last block of a row may end anywhere; its window goes on, beyond the rim if need be, to whole multiples.
        height, width = (-(-n // step) * step for n in block.shape)
        around = Box(y0=block.y0, y1=block.y0 + height, x0=block.x0, x1=block.x0 + width).grown(summed.margin)
        return block, around, pair.read(around)

    def sums(loaded: tuple[Box, Box, PairWindow]) -> dict[str, torch.Tensor]:
        block, around, window = loaded
        whole = max_pool2d((~window.msi_valid).float(), ratio) == 0
        valid = window.hsi_valid.all(dim=1) & whole[:, 0]
        counted = torch.zeros_like(valid)
        height, width = block.shape
        counted[:, summed.margin : summed.margin + height, summed.margin : summed.margin + width] = True
        return summed.sums(window.hsi, window.msi, valid & counted, (around.y0, around.x0))

    for done, part in enumerate(convey(blocks, load=load, work=sums, store=lambda part: part), start=1):
        total = merge_sums(summed, total, part) if total else part
        progress("first pass", done, len(blocks))
    return total


def touched(job: StagedJob, tile: Tile) -> dict[str, Box]:
    """Pixels that fusing a tile reads of each staged array, by the array's name; may reach beyond the rim."""
    core, lead, ratio = tile.core, job.grids.lead, job.grids.ratio
    # `valid` looks around the core as far as samples reach, which an approximate method's window need not hold.
    hsi_reach, msi_reach = job.spec.void_reach
    margin = max(hsi_reach, -(-(msi_reach or 0) // ratio))
    around = Box(
        y0=(core.y0 + lead[0]) // ratio,
        y1=-(-(core.y1 + lead[0]) // ratio),
        x0=(core.x0 + lead[1]) // ratio,
        x1=-(-(core.x1 + lead[1]) // ratio),
    ).grown(margin)
    coarse = Box(
        y0=min(around.y0, tile.window.y0),
        y1=max(around.y1, tile.window.y1),
        x0=min(around.x0, tile.window.x0),
        x1=max(around.x1, tile.window.x1),
    )
    if (job.folder / FILL).is_file():
        coarse = coarse.grown(fill_reach(job.spec.observed))
    rates = job.spec.two_rate
    return {"hsi": coarse, "msi": coarse.times(ratio)} | (
        {} if rates is None else {"features": coarse.times(rates.rate)}
    )


def _eroded(valid: torch.Tensor, reach: int) -> torch.Tensor:
    """Pixels at least `reach` away from what is invalid; the result is smaller by `reach` on each side."""
    if reach == 0:
        return valid
    size = 2 * reach + 1
    # Row by row, then column by column: the same square, at a cost that grows with its edge, not its area.
    reached = max_pool2d(max_pool2d((~valid).float(), (size, 1), stride=1), (1, size), stride=1)
    return reached == 0


def _in_memory(image: F32) -> _Image:
    known = np.isfinite(image)
    n = np.maximum(known.sum(axis=(1, 2)), 1)
    mean = np.where(known, image, 0.0).sum(axis=(1, 2), dtype=np.float64) / n
    fill = torch.from_numpy(mean.astype(np.float32))[None, :, None, None]
    # Copied, for torch wants arrays that may be written.
    return _Image(read=lambda box: np.array(image[:, *box.slices], np.float32), shape=image.shape[1:], fill=fill)
