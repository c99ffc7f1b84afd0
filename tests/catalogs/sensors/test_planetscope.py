"""The PlanetScope reader: planted counts by the specification; no real file is at hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.sensors import Source, open_scene
from tests.products import planetscope as built
from tests.products.packing import planted, zipped
from tests.synthetic import whole


@pytest.mark.parametrize(
    ("mask", "layers"),
    [(None, ("cloud", "shadow", "unusable")), ("none", ()), ("haze,snow", ("heavy haze", "snow"))],
)
def test_planted_values_and_layers(tmp_path, mask, layers):
    folder = built.planetscope(tmp_path / "a")
    want = planted(4, *built.SHAPE) * 1e-4
    for at in (built.HOLE, *(built.place(layer) for layer in layers)):
        want[(slice(None), *at)] = np.nan
    for place in (folder, zipped(folder, tmp_path / "a.zip")):
        scene = open_scene(Source(uri=str(place), mask=mask))
        assert (scene.sensor, scene.name, scene.bands.names) == ("planetscope", built.ID, tuple(built.BANDS))
        assert tuple(scene.geobox.affine) == tuple(built.GRID)
        np.testing.assert_allclose(whole(scene), want, rtol=1e-6)
        np.testing.assert_allclose(scene.bands.center_nm, [center for center, _ in built.BANDS.values()])
        np.testing.assert_allclose(scene.bands.fwhm_nm, [width for _, width in built.BANDS.values()])


def test_what_is_missing_is_told(tmp_path):
    folder = built.planetscope(tmp_path / "a", udm2=False)
    assert open_scene(Source(uri=str(folder))).notes == ("no UDM2 in the delivery: clouds are not masked",)
    item = folder / f"{built.ID}.json"
    right = json.loads(item.read_text())
    item.write_text(json.dumps(right | {"assets": {}}))
    with pytest.raises(InputRejected, match="0 of the surface reflectance images"):
        open_scene(Source(uri=str(folder)))
    del right["assets"]["sr"]["raster:bands"][0]["scale"]
    item.write_text(json.dumps(right))
    with pytest.raises(InputRejected, match="KeyError"):
        open_scene(Source(uri=str(folder)))
