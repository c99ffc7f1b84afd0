"""Holes that networks are given filled: near the truth, the same from every window, and alone void in the product."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from hyperfuse.catalogs.errors import QualityRefused
from hyperfuse.catalogs.references.cubes import ReferenceCube
from hyperfuse.models import ModelSpec, Observed, method
from hyperfuse.models.operators import degrade
from hyperfuse.pipeline.fusion.fill import Filler, FillPass, fill_reach
from hyperfuse.pipeline.fusion.method import pair_fuser
from hyperfuse.pipeline.fusion.windows import PairInMemory
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import SimulatedPair, simulate
from hyperfuse.pipeline.run import run
from tests.pipeline.fusion.test_weights import weight_file
from tests.synthetic import config, scene, whole

CPU = torch.device("cpu")
OBSERVED = Observed(hsi_bands=6, msi_bands=3, ratio=4, psf_sigma_px=2.0)
CLOUD = (slice(10, 16), slice(12, 19))
"""Coarse pixels."""


@pytest.fixture(scope="module")
def pair() -> SimulatedPair:
    truth = scene("truth", "size=160&bands=12&seed=3")
    return simulate(ReferenceCube(name="land", values=whole(truth), bands=truth.bands), Protocol())


def clouded(pair: SimulatedPair) -> SimulatedPair:
    """A cloud that both see, one that only the HSI sees, and dead pixels of either."""
    hsi, msi = pair.hsi.copy(), pair.msi.copy()
    hsi[:, *CLOUD] = np.nan
    msi[:, 40:64, 48:76] = np.nan
    hsi[:, 26:31, 5:9] = np.nan
    hsi[:, 3, 30] = np.nan
    msi[:, 121, 133] = np.nan
    return replace(pair, hsi=hsi, msi=msi)


def test_what_the_msi_shows_of_a_hole_is_what_is_filled_in() -> None:
    """HSI bands that are sums of the degraded MSI's: a hole holds what stood there."""
    noise = torch.Generator().manual_seed(0)
    msi = torch.rand((1, 3, 96, 96), generator=noise)
    mixing = torch.rand((6, 3), generator=noise)
    hsi = torch.einsum("ck,nkhw->nchw", mixing, degrade(msi, 4, 2.0)) + 0.1
    everywhere = torch.ones(1, 24, 24, dtype=torch.bool)
    filler = Filler.from_sums(OBSERVED, FillPass(OBSERVED).sums(hsi, msi, everywhere))
    hsi_valid, msi_valid = torch.ones_like(hsi, dtype=torch.bool), torch.ones((1, 1, 96, 96), dtype=torch.bool)
    hsi_valid[..., 8:12, 9:14] = False
    filled, same = filler.fill(hsi.where(hsi_valid, 0.0), msi, hsi_valid, msi_valid)
    assert same is msi
    spread = float(hsi.std())
    assert float((filled - hsi).abs().max()) < 0.02 * spread
    assert torch.equal(filled.where(hsi_valid, 0.0), hsi.where(hsi_valid, 0.0))


def test_far_from_all_that_was_seen_there_is_the_mean() -> None:
    hsi, msi = torch.rand((1, 6, 60, 60)), torch.rand((1, 3, 240, 240))
    filler = Filler.from_sums(OBSERVED, FillPass(OBSERVED).sums(hsi, msi, torch.ones(1, 60, 60, dtype=torch.bool)))
    hsi_valid, msi_valid = torch.zeros_like(hsi, dtype=torch.bool), torch.zeros((1, 1, 240, 240), dtype=torch.bool)
    hsi_valid[..., :3, :3] = msi_valid[..., :12, :12] = True
    filled, bands = filler.fill(hsi, msi, hsi_valid, msi_valid)
    torch.testing.assert_close(filled[0, :, 50, 50], filler.hsi_mean[:, 0, 0])
    torch.testing.assert_close(bands[0, :, 200, 200], filler.msi_mean[:, 0, 0])


@pytest.mark.parametrize("name", ["csakd-student", "hyfusion-s"])
def test_every_window_is_filled_alike(pair: SimulatedPair, name: str) -> None:
    windows = PairInMemory(clouded(pair), method(name).specify(pair.observed))
    together = windows.read(windows.whole)
    for box in (Box(y0=8, y1=24, x0=8, x1=24), Box(y0=24, y1=40, x0=0, x1=16), Box(y0=-8, y1=8, x0=24, x1=40)):
        part, inside = windows.read(box), Box(y0=max(box.y0, 0), y1=box.y1, x0=box.x0, x1=box.x1)
        at = inside.within(box)
        torch.testing.assert_close(part.hsi[..., *at.slices], together.hsi[..., *inside.slices], rtol=0, atol=1e-5)
        torch.testing.assert_close(
            part.msi[..., *at.times(4).slices], together.msi[..., *inside.times(4).slices], rtol=0, atol=1e-5
        )
    assert fill_reach(pair.observed) < 60


def test_a_network_hardly_notices_what_was_filled(pair: SimulatedPair) -> None:
    """Against the same weights on the pair without a hole: the rim errs less than with the mean filled in, by a few percent."""
    spec = method("csakd-student").specify(pair.observed)

    def fused(of: SimulatedPair, *, by_mean: bool = False) -> np.ndarray:
        fuser = pair_fuser(method("csakd-student"), spec, of, None, CPU)
        if by_mean:
            fuser.pair.filler = None
        return fuser.whole()

    unmasked, filled, by_mean = fused(pair), fused(clouded(pair)), fused(clouded(pair), by_mean=True)
    rim = np.zeros(pair.hsi.shape[1:], bool)
    rim[2:24, 4:27] = True
    rim[18:39, 0:17] = True
    rim &= np.isfinite(clouded(pair).hsi).all(axis=0)
    there = rim.repeat(4, axis=0).repeat(4, axis=1) & np.isfinite(clouded(pair).msi).all(axis=0)

    def error(image: np.ndarray) -> float:
        return float(np.sqrt(((image - unmasked)[:, there] ** 2).mean()))

    assert error(filled) < 0.7 * error(by_mean)
    assert error(filled) < 0.04 * unmasked.std()


@pytest.mark.parametrize("name", ["csakd-student", "hyfusion-s"])
def test_only_what_was_not_seen_is_void(tmp_path, name: str) -> None:
    """A few dead pixels: today's receptive fields would leave next to nothing of such a scene."""
    recipe = "size=160&ratio=4&bands=12&seed=3&holes_hsi=0.004&holes_msi=0.0005"
    weights = weight_file(tmp_path / "w.safetensors", name)
    product = run(
        config(
            tmp_path / "p", recipe, method=name, weights=str(weights), publish__formats="[zarr]", quality__gate="off"
        )
    )
    seen = np.isfinite(whole(scene("hsi", recipe))).all(axis=0).repeat(4, axis=0).repeat(4, axis=1)
    seen &= np.isfinite(whole(scene("msi", recipe))).all(axis=0)
    assert seen.mean() < 0.999
    with product.open() as cube:
        np.testing.assert_array_equal(np.isfinite(cube["reflectance"].values).all(axis=0), seen)


def test_a_product_without_a_valid_pixel_is_never_published(tmp_path, monkeypatch) -> None:
    """A method that looks over the whole scene, and a hole in it."""
    monkeypatch.setattr(ModelSpec, "void_reach", property(lambda _: (24, 96)))
    settings = {"method": "gsa", "publish__formats": "[zarr]", "quality__gate": "off"}
    with pytest.raises(QualityRefused, match=r"no pixel of the product would be valid; seen were .*methods"):
        run(config(tmp_path / "p", "size=96&ratio=4&bands=12&seed=3&holes_msi=0.02", **settings))
    assert not (tmp_path / "p").exists()


def test_a_product_that_lost_most_of_what_was_seen_says_so(tmp_path) -> None:
    settings = {"method": "gsa-regressed", "publish__formats": "[zarr]"}
    product = run(config(tmp_path / "p", "size=160&ratio=4&bands=12&seed=3&holes_msi=0.0012", **settings))
    gates = {gate["name"]: gate for gate in json.loads((product.path / "qa.json").read_text())["gates"]}
    with product.open() as cube:
        valid = float(np.isfinite(cube["reflectance"].values).mean())
    seen = np.isfinite(whole(scene("msi", "size=160&ratio=4&bands=12&seed=3&holes_msi=0.0012"))).all(axis=0).mean()
    assert gates["min_valid"]["value"] == pytest.approx(valid / seen, rel=1e-3)
    assert valid / seen < 0.5
    assert gates["min_valid"]["passed"] is False
