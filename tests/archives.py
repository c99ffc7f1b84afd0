"""Scene items with planted values, and a catalogue as large as an archive."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from hyperfuse.catalogs.outline import outline
from hyperfuse.catalogs.scene import Conditions
from hyperfuse.catalogs.stac.clear_map import CELLS
from hyperfuse.catalogs.stac.items import Fingerprint, SceneItem

DAY = datetime(2024, 6, 1, 10, 30, tzinfo=UTC)


def scene_item(
    name: str, role: str, *, west: float = 10.0, south: float = 47.0, width: float = 0.4, **fields: Any
) -> SceneItem:
    """A clear scene of `width` x `width` degrees; other fields as given."""
    ring = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * width
    sensor = {"hsi": "enmap", "msi": "sentinel2"}[role]
    planted: dict[str, Any] = {
        "sensor": sensor,
        "uri": f"/nowhere/{name}",
        "gsd_m": {"hsi": 30.0, "msi": 10.0}[role],
        "n_bands": {"hsi": 224, "msi": 10}[role],
        "time": DAY,
        "conditions": Conditions(cloud_cover=0.0, sun_elevation_deg=60.0, sun_azimuth_deg=150.0, off_nadir_deg=3.0),
        "footprint": outline(west + ring[:, 0], south + ring[:, 1]),
        "fingerprint": Fingerprint(sha256=name, size=1, mtime_ns=1),
    }
    return SceneItem(id=name, role=role, **planted | fields)  # type: ignore[arg-type]


def archive(n_scenes: int, *, seed: int = 1) -> Iterator[SceneItem]:
    """Half HSI and half MSI over Central Europe and one year, with bands, cloud maps and angles as real items have them."""
    random = np.random.default_rng(seed)
    bands = [
        {"name": f"band {i}", "eo:center_wavelength": 0.42 + i * 0.01, "eo:full_width_half_max": 0.0065}
        for i in range(224)
    ]
    for i in range(n_scenes):
        role = "hsi" if i % 2 else "msi"
        shares = random.integers(0, 16, (CELLS, CELLS)) if i % 5 == 0 else np.full((CELLS, CELLS), 15)
        yield scene_item(
            f"{role}-{i:05d}",
            role,
            west=float(random.uniform(5, 15)),
            south=float(random.uniform(45, 55)),
            width=0.4 if role == "hsi" else 1.4,
            time=DAY + timedelta(days=float(random.uniform(0, 365))),
            clear=tuple("".join(f"{v:x}" for v in row) for row in shares.tolist()),
            conditions=Conditions(
                cloud_cover=float(random.uniform(0, 1)) ** 2,
                sun_elevation_deg=float(random.uniform(20, 65)),
                sun_azimuth_deg=float(random.uniform(130, 190)),
                off_nadir_deg=float(random.uniform(0, 15)),
            ),
            details={"bands": bands if role == "hsi" else bands[:10], "properties": {"proj:code": "EPSG:32632"}},
        )
