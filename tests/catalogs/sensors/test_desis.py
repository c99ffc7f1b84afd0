"""The DESIS reader: planted counts by the specification; no real file is at hand."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.sensors import Source, open_scene
from tests.products import desis as built
from tests.products.packing import planted, zipped
from tests.synthetic import whole


def expected(*layers: str) -> np.ndarray:
    values = planted(5, *built.SHAPE) * built.GAIN + np.array(built.OFFSET)[:, None, None]
    values[:, :, 0] = np.nan
    for layer in layers:
        values[(slice(None), *built.place(layer))] = np.nan
    return values


@pytest.mark.parametrize(
    ("mask", "layers"),
    [
        (None, ("shadow", "cloud land", "cloud water")),
        ("none", ()),
        ("haze,snow", ("haze land", "haze water", "snow")),
        ("water", ("water",)),
    ],
)
def test_planted_values_and_layers(tmp_path, mask, layers):
    folder = built.desis(tmp_path / "a")
    for place in (folder, zipped(folder, tmp_path / "a.zip"), folder / f"{built.PREFIX}METADATA.xml"):
        scene = open_scene(Source(uri=str(place), mask=mask))
        assert (scene.sensor, scene.name) == ("desis", built.PREFIX.rstrip("-"))
        assert tuple(scene.geobox.affine) == tuple(built.GRID)
        np.testing.assert_allclose(whole(scene), expected(*layers), rtol=1e-5)


def test_bands_and_time(tmp_path):
    scene = open_scene(Source(uri=str(built.desis(tmp_path / "a", masks=False))))
    np.testing.assert_array_equal(scene.bands.center_nm, built.CENTER_NM)
    np.testing.assert_array_equal(scene.bands.fwhm_nm, built.WIDTH_NM)
    assert scene.time == datetime(2020, 7, 12, 7, 41, 40, 500000, tzinfo=UTC)
    assert scene.notes == ("no QL_QUALITY-2 in the product: clouds are not masked",)


def test_other_levels_are_refused(tmp_path):
    with pytest.raises(InputRejected, match="is DESIS L1C, expected L2A"):
        open_scene(Source(uri=str(built.desis(tmp_path / "a", level="L1C"))))
