"""What a fusion will cost: hours by the pace of the products that are there, gigabytes by the size of the overlap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from pyproj import Geod

from hyperfuse.catalogs.pairing.ranking import Candidate
from hyperfuse.pipeline.archive.built_from import Made
from hyperfuse.pipeline.config import RunConfig
from hyperfuse.pipeline.products.writers import writer

ASSUMED = 1e6
"""Samples (pixels times bands) per second before any product tells: a cautious figure for one CPU core."""
START_SECONDS = 15.0
"""Opening, registering and publishing the smallest scene; products that were measured include it."""
_STORED = 0.6
"""Compressed over uncompressed size: noise bounds what lossless codecs save."""
_WGS84 = Geod(ellps="WGS84")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one fusion."""

    hours: float
    gigabytes: float
    """Size of the product."""


FREE = Cost(hours=0.0, gigabytes=0.0)
"""Of what is not due."""


@dataclass(frozen=True, kw_only=True)
class ScenePace:
    """Samples per second of each method, by the products that are there."""

    rates: Mapping[str, float]
    """Median by method."""
    n_products: int
    """Products that were measured."""

    @classmethod
    def of(cls, products: Iterable[Made]) -> ScenePace:
        """The pace of finished products; those that resumed another run tell nothing."""
        seen: dict[str, list[float]] = defaultdict(list)
        for made in products:
            if made.seconds is not None:
                seen[made.method].append(made.samples / made.seconds)
        rates = {method: median(rates) for method, rates in seen.items()}
        return cls(rates=rates, n_products=sum(map(len, seen.values())))

    @property
    def told(self) -> str:
        """One sentence on where the figures come from."""
        if not self.rates:
            return f"no product to measure by yet: {ASSUMED / 1e6:g} million samples per second assumed"
        paces = ", ".join(f"{name} {rate / 1e6:.3g}" for name, rate in sorted(self.rates.items()))
        return f"million samples per second, median of {self.n_products} products: {paces}"

    def cost(self, pair: Candidate, config: RunConfig) -> Cost:
        """Of fusing a pair: the area that both see, in fine pixels, times the bands of the HSI."""
        area, _ = _WGS84.geometry_area_perimeter(pair.hsi.footprint)
        samples = abs(area) * pair.overlap / pair.msi.gsd_m**2 * pair.hsi.n_bands
        seconds = samples / self.rates.get(config.method, ASSUMED) + START_SECONDS
        item = 2 if config.publish.dtype == "int16" else 4
        copies = sum(writer(name).open_cube is not None for name in config.publish.formats)
        return Cost(hours=seconds / 3600, gigabytes=samples * item * copies * _STORED / 1e9)
