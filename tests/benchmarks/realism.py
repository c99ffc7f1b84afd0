"""Are generated scenes like land: `python -m tests.benchmarks.realism --data DIR [--figure FILE]`.

Generated scenes, of all sources in the folder unless --recipe has others, and the real cubes of the benchmark `real-4` side by side: how many components they have,
how alike neighbors are, how much of the HSI its MSI predicts, and what methods reach on them. A network that is to learn
from generated scenes must not find them easier, smoother or richer than land is.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.catalogs.references.cubes import ReferenceCube, open_cube
from hyperfuse.pipeline.config import read_mapping
from hyperfuse.pipeline.evaluation.presets import CUBES, within
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import simulate
from hyperfuse.pipeline.quality.trials import fuse_whole, score
from hyperfuse.pipeline.training.generated.scenes import Generator
from hyperfuse.pipeline.training.settings import GeneratedConfig
from tests.sources import everything

PROTOCOL = Protocol(ratio=4, msi="s2-4", hsi_snr_db=35.0, msi_snr_db=40.0)
METHODS = ("bicubic", "gsa-regressed", "map_subspace")
COLORS_NM = (650.0, 550.0, 480.0)


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """What is measured of a cube."""

    components: int
    """Principal components that hold 99.9 % of the variance."""
    neighbors: float
    """Correlation of a pixel with its neighbor, mean of the first three components."""
    afar: float
    """The same of pixels four apart, a coarse pixel's edge."""
    unpredicted: float
    """Share of the HSI's variance that no linear map from the four MSI bands tells."""
    bicubic_db: float
    gsa_db: float
    map_db: float
    bicubic_deg: float
    gsa_deg: float
    map_deg: float


def likeness(cube: ReferenceCube) -> Likeness:
    """Measure a cube.

    Raises
    ------
    InputRejected
        If no pair can be made of it.
    """
    pair = simulate(cube, PROTOCOL)
    valid = ~np.isnan(pair.truth).any(axis=0)
    spectra = pair.truth[:, valid].astype(np.float64)
    centered = spectra - spectra.mean(axis=1, keepdims=True)
    variances, basis = np.linalg.eigh(centered @ centered.T)
    held = np.cumsum(variances[::-1]) / variances.sum()
    planes = np.einsum("ck,cyx->kyx", basis[:, -3:], np.nan_to_num(pair.truth))
    guides = np.concatenate([pair.msi[:, valid], np.ones((1, int(valid.sum())))]).astype(np.float64)
    left = centered - (centered @ np.linalg.pinv(guides)) @ guides
    found = {name: score(fuse_whole(name, pair).image, pair) for name in METHODS}
    return Likeness(
        components=int(np.searchsorted(held, 0.999) + 1),
        neighbors=_lagged(planes, valid, 1),
        afar=_lagged(planes, valid, 4),
        unpredicted=float((left**2).sum() / (centered**2).sum()),
        **{f"{name.split('-')[0].split('_')[0]}_db": s.psnr_db for name, s in found.items()},
        **{f"{name.split('-')[0].split('_')[0]}_deg": s.sam_deg for name, s in found.items()},
    )


def picture(cubes: list[ReferenceCube], path: Path) -> None:
    """True colors above false ones (1650 or the last, 850, 650 nm), scene beside scene."""
    columns = []
    for cube in cubes:
        nm = np.where(cube.bands.good, cube.bands.center_nm, np.inf)
        looks = [COLORS_NM, (min(1650.0, nm[np.isfinite(nm)].max()), 850.0, 650.0)]
        columns.append(
            np.concatenate([_painted(cube.values[[int(np.abs(nm - n).argmin()) for n in look]]) for look in looks])
        )
    edge = min(column.shape[1] for column in columns)
    Image.fromarray(np.concatenate([column[:, :edge] for column in columns], axis=1)).save(path)


def _painted(planes: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = np.nanpercentile(planes, [1, 99])
    stretched = np.clip((np.nan_to_num(planes) - low) / (high - low), 0, 1) ** 0.7
    return np.moveaxis((255 * stretched).astype(np.uint8), 0, -1)


def _lagged(planes: NDArray[np.float64], valid: NDArray[np.bool_], lag: int) -> float:
    both = valid[:, lag:] & valid[:, :-lag]
    return float(np.mean([np.corrcoef(p[:, lag:][both], p[:, :-lag][both])[0, 1] for p in planes]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="settings of `generated` as YAML, TOML or JSON")
    parser.add_argument("--count", type=int, default=12, metavar="N", help="generated scenes (default: 12)")
    parser.add_argument("--size", type=int, default=100, metavar="PX", help="edge of them (default: 100)")
    parser.add_argument("--seed", type=int, default=3, metavar="N")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the real cubes")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="write a picture of the first four scenes")
    options = parser.parse_args()
    recipe = everything(options.data) if options.recipe is None else read_mapping(options.recipe)
    given = {"count": options.count, "size_px": options.size, "seed": options.seed}
    config = GeneratedConfig.model_validate(recipe | given)
    generator = Generator(config)
    print(f"{'scene':22}" + "".join(f"{field.name:>13}" for field in fields(Likeness)))
    real = [_row(name, open_cube(within(options.data, source))) for name, source in CUBES.items()]
    _mean("real", real)
    cubes = [generator.scene(number).cube for number in range(config.count)]
    _mean("generated", [_row(cube.name, cube) for cube in cubes])
    if options.figure:
        picture(cubes[:4], options.figure)


def _row(name: str, cube: ReferenceCube) -> Likeness | None:
    try:
        found = likeness(cube)
    except HyperFuseError as error:
        print(f"{name:22} {error}")
        return None
    print(f"{name:22}" + "".join(f"{value:13.3f}" for value in asdict(found).values()), flush=True)
    return found


def _mean(name: str, rows: list[Likeness | None]) -> None:
    found = np.array([[*asdict(row).values()] for row in rows if row is not None])
    for told, values in (("least", found.min(axis=0)), ("mean", found.mean(axis=0)), ("most", found.max(axis=0))):
        print(f"{name + ', ' + told:22}" + "".join(f"{value:13.3f}" for value in values))


if __name__ == "__main__":
    main()
