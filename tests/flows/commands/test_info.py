"""`hyperfuse info` on a built product: text, JSON, the picture, and errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from hyperfuse.flows.cli import main
from hyperfuse.pipeline.run import run as run_pipeline
from tests.products import sentinel2
from tests.synthetic import config


@pytest.fixture(scope="module")
def safe(tmp_path_factory):
    return sentinel2.sentinel2(tmp_path_factory.mktemp("s2"))


def test_json(safe, capsys):
    assert main(["info", str(safe), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["sensor"] == "sentinel2"
    assert record["grid"] == {"crs": sentinel2.CRS, "shape": [24, 36], "transform": [10, 0, 499980, 0, -10, 5400000]}
    assert record["bands"]["gsd_m"] == [10, 10, 10, 20, 10, 20, 20]
    assert record["mtf_nyquist"] == [0.26, 0.28, 0.24, 0.38, 0.26, 0.33, 0.22]
    assert record["time"] == "2024-05-01T10:30:11.459000+00:00"
    assert record["bounds_lonlat"][0] == pytest.approx(8.99973, abs=1e-4)
    assert "quicklook" not in record


def test_text_and_quicklook(safe, tmp_path, capsys):
    picture = tmp_path / "look.png"
    assert main(["info", str(safe), "--set", "mask=none", "--quicklook", str(picture)]) == 0
    told = capsys.readouterr().out
    assert "sentinel2 (Sentinel-2 L2A and L1C)" in told
    assert "7 of 7 good, 492.1-1610.4 nm" in told
    assert "0.22 to 0.38 at the Nyquist frequency" in told
    with Image.open(picture) as image:
        pixels = np.array(image)
    assert pixels.shape == (24, 36, 4)
    # Transparent: the row of blocks without data, and the saturated pixel of green.
    holes = np.argwhere(pixels[..., 3] == 0).tolist()
    assert holes == [[y, x] for y in (0, 1) for x in range(36)] + [list(sentinel2.SATURATED[1])]


def test_errors(safe, tmp_path, capsys):
    assert main(["info", str(tmp_path / "absent")]) == 3
    assert main(["info", str(safe), "--set", "scale=1"]) == 2
    assert main(["info", str(safe), "--set", "fog=1"]) == 2
    assert main(["info", str(safe), "--quicklook", str(tmp_path / "absent" / "a.png")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4
    assert all(line.startswith("hyperfuse: ") for line in told)


def test_a_fused_product_tells_of_itself(capsys, tmp_path):
    settings = {"method": "bicubic", "publish__formats": "[zarr]", "quality__gate": "off"}
    product = run_pipeline(config(tmp_path / "p", "size=96&bands=12", **settings))
    assert main(["info", str(tmp_path / "p"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["job_key"], record["bands"]) == (product.job_key, 12)
    assert main(["info", str(tmp_path / "p")]) == 0
    assert "96 x 96 px, 12 bands, 100.00 % valid" in capsys.readouterr().out
