"""A folder with `cube.npy` (band, y, x) and `cube.json`: an example of a sensor in one file.

`cube.json` holds `crs`, `transform` (a, b, c, d, e, f of the pixel-to-world matrix), `wavelength_nm` and, if known,
`fwhm_nm`. In `catalogs/sensors/` this file would be found by its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.scene import Scene, Window
from hyperfuse.catalogs.sensors import Mtf, Sensor, Source

SENSOR = Sensor(title="NumPy cube with a JSON file", mtf=Mtf(across=0.3))


@dataclass(frozen=True)
class NpyCube:
    """See `catalogs.scene.Cube`; nothing is read before `read`, and then only the window."""

    path: Path
    shape: tuple[int, int, int]
    order: NDArray[np.int64]
    """Positions in the file of the sorted bands."""
    block: tuple[int, int] = (64, 64)

    def read(self, bands: Sequence[int], window: Window) -> NDArray[np.float32]:
        """Reflectance of some bands in a window, NaN where there is none."""
        stored = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return np.asarray(stored[self.order[list(bands)]][:, *window], np.float32)


def accepts(uri: str) -> bool:
    """By what the folder holds, never by its name."""
    return (Path(uri) / "cube.npy").is_file() and (Path(uri) / "cube.json").is_file()


def open_scene(source: Source) -> Scene:
    """The scene of a folder; `InputRejected` with one sentence if it cannot be used."""
    folder = Path(source.uri)
    facts = json.loads((folder / "cube.json").read_text(encoding="utf-8"))
    shape = np.load(folder / "cube.npy", mmap_mode="r", allow_pickle=False).shape
    if len(shape) != 3 or shape[0] != len(facts["wavelength_nm"]):
        raise InputRejected(
            f"{folder / 'cube.npy'}: its shape is {shape}, expected ({len(facts['wavelength_nm'])}, y, x), a band for each "
            "wavelength of cube.json; write it again"
        )
    bands = Bands.sort(facts["wavelength_nm"], unit="nm", of=str(folder), fwhm=facts.get("fwhm_nm"))
    digest = hashlib.sha256((folder / "cube.json").read_bytes())
    with (folder / "cube.npy").open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return Scene(
        name=folder.name,
        uri=source.uri,
        sensor="npy",
        cube=NpyCube(folder / "cube.npy", (len(bands), *shape[1:]), np.asarray(bands.source_band)),
        bands=bands,
        geobox=GeoBox(shape[1:], Affine(*facts["transform"]), facts["crs"]),
        quantity="reflectance",
        unit="1",
        time=None,
        digest=digest.hexdigest(),
    )
