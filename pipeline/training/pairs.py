"""Scenes as pairs: what is true, and what both sensors would see of it; without noise where samples draw their own.

The split is by scene. A cube that is learnt from and held out at once is refused, by content, whatever its name.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.opening import open_source
from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.catalogs.references.cubes import ReferenceCube, open_cube
from hyperfuse.catalogs.sensors import Source
from hyperfuse.models import Observed
from hyperfuse.pipeline.config import AlignConfig
from hyperfuse.pipeline.observation.simulate import SimulatedPair, simulate
from hyperfuse.pipeline.quality.reduced_resolution import reduced, reduced_protocol
from hyperfuse.pipeline.training.generated.scenes import Generator
from hyperfuse.pipeline.training.settings import GeneratedConfig, GroundConfig, SimulationConfig

log = logging.getLogger(__name__)

_SAME_BAND_NM = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """A scene as a pair."""

    pair: SimulatedPair
    """Truth, HSI and MSI; noise is added only where the scene is held out."""
    bands: Bands
    """Those of the HSI, C of them."""
    license: str
    """Terms of the data."""
    sha256: str
    """Digest of the truth's samples."""
    real: bool
    """Whether the MSI is a real one, which brings its own noise."""
    cube: ReferenceCube | None = None
    """What the pair was simulated from, where more pairs will be."""

    @property
    def center_nm(self) -> NDArray[np.float64]:
        """Centers of the HSI's bands, shape (C,)."""
        return self.bands.center_nm

    @property
    def span(self) -> tuple[float, float]:
        """Smallest and largest sample of the HSI, which a symmetric network maps to -1 and 1; as in a fusion."""
        return float(np.nanmin(self.pair.hsi)), float(np.nanmax(self.pair.hsi))

    def to_json(self) -> dict[str, Any]:
        """What a card says of it: no address, for that means nothing elsewhere."""
        n_bands, height, width = self.pair.truth.shape
        return {
            "name": self.pair.name,
            "sha256": self.sha256,
            "license": self.license,
            "shape": [n_bands, height, width],
            "msi": "real" if self.real else "simulated",
        }


def open_ground(
    config: GroundConfig, simulation: SimulationConfig, *, noise_seed: int | None = None, keep_cube: bool = False
) -> Ground:
    """Open a scene and make its pair.

    Parameters
    ----------
    config : GroundConfig
    simulation : SimulationConfig
    noise_seed : int, optional
        Add the noise of the simulation once, from this seed; samples draw their own.
    keep_cube : bool
        Whether more pairs will be made of it.

    Raises
    ------
    InputRejected, ExpectedSkip
        If it cannot be read, or no such pair can be made of it.
    """
    if config.msi is not None:
        hsi = open_source(
            Source(uri=config.uri, variable=config.variable, wavelengths=config.wavelengths, crs=config.crs)
        )
        both = ScenePair(hsi=hsi, msi=open_source(Source(uri=config.msi)))
        pair = reduced(both, reduced_protocol(both, simulation.ratio), align=AlignConfig())
        return _ground(pair, hsi.bands[hsi.good_bands], config.license, real=True)
    cube = open_cube(config.source())
    return _of_cube(cube, config.license, simulation, noise_seed=noise_seed, keep_cube=keep_cube)


def generated_grounds(
    config: GeneratedConfig, simulation: SimulationConfig, *, bands: Bands | None = None, keep_cube: bool = False
) -> Iterator[Ground]:
    """The scenes of a generator one after the other, without noise; `bands` are its `wanted`, `keep_cube` as for `open_ground`.

    Raises
    ------
    InputRejected
        If no scenes, or no such pairs, can be made.
    """
    generator = Generator(config, bands)
    for number in range(config.count):
        made = generator.scene(number)
        yield _of_cube(made.cube, made.license, simulation, noise_seed=None, keep_cube=keep_cube)


def open_grounds(
    scenes: Sequence[GroundConfig],
    held_out: Sequence[GroundConfig],
    simulation: SimulationConfig,
    *,
    generated: GeneratedConfig | None = None,
    universal: bool = False,
) -> tuple[list[Ground], list[Ground]]:
    """Scenes that are learnt from, without noise, and those held out, with the noise of the simulation.

    Parameters
    ----------
    scenes, held_out : sequence of GroundConfig
    simulation : SimulationConfig
    generated : GeneratedConfig, optional
        Scenes to learn from that are made.
    universal : bool
        Whether the scenes may differ in their bands, and keep their cubes, as universal networks want them.

    Raises
    ------
    InputRejected, ExpectedSkip
        If one cannot be used, has other bands than the first, or is in both parts.
    """
    learnt = [open_ground(config, simulation, keep_cube=universal) for config in scenes]
    scored = [open_ground(config, simulation, noise_seed=k) for k, config in enumerate(held_out)]
    if generated is not None:
        # A native network knows one sensor: that of the scenes it stands beside, or will be scored on.
        bands = None if universal else (learnt + scored)[0].bands
        learnt += generated_grounds(generated, simulation, bands=bands, keep_cube=universal)
    first = learnt[0]
    for ground in [*learnt, *scored]:
        if not universal:
            _refuse_other_bands(ground, first)
        for note in ground.pair.notes:
            log.info("%s", note)
    names = {ground.sha256: ground.pair.name for ground in learnt}
    for ground in scored:
        if ground.sha256 in names:
            raise InputRejected(
                f"{ground.pair.name}: is held out and learnt from (as {names[ground.sha256]}), expected whole scenes "
                "apart; take it out of scenes or of held_out"
            )
    return learnt, scored


def _of_cube(
    cube: ReferenceCube,
    license_terms: str,
    simulation: SimulationConfig,
    *,
    noise_seed: int | None,
    keep_cube: bool,
) -> Ground:
    pair = simulate(cube, simulation.protocol(noise=noise_seed is not None, seed=noise_seed or 0))
    made = _ground(pair, cube.bands[cube.bands.good], license_terms, real=False)
    return replace(made, cube=cube) if keep_cube else made


def _ground(pair: SimulatedPair, bands: Bands, license_terms: str, *, real: bool) -> Ground:
    digest = hashlib.sha256(np.ascontiguousarray(pair.truth).data).hexdigest()
    return Ground(pair=pair, bands=bands, license=license_terms, sha256=digest, real=real)


def _refuse_other_bands(ground: Ground, first: Ground) -> None:
    """A native network knows its bands by their place alone."""
    mine, wanted = ground.pair.observed, first.pair.observed
    if (mine.hsi_bands, mine.msi_bands, mine.steps) != (wanted.hsi_bands, wanted.msi_bands, wanted.steps):
        raise InputRejected(
            f"{ground.pair.name}: {_told(mine)}, expected {_told(wanted)} as {first.pair.name} has; leave bands out "
            "with `bad`, or train on scenes of one sensor"
        )
    apart = np.abs(ground.center_nm - first.center_nm)
    if apart.max() > _SAME_BAND_NM:
        k = int(apart.argmax())
        raise InputRejected(
            f"{ground.pair.name}: band {k + 1} lies at {ground.center_nm[k]:.1f} nm, expected {first.center_nm[k]:.1f} nm "
            f"as in {first.pair.name}; train on scenes of one sensor"
        )


def _told(observed: Observed) -> str:
    return f"{observed.hsi_bands} good HSI bands and {observed.msi_bands} MSI bands"
