"""What every fusion method promises, run over whatever methods are found."""

from __future__ import annotations

import pytest
import torch

import models
from models import ModelSpec, Observed

BANDS, MSI_BANDS = 7, 3


@pytest.fixture(autouse=True)
def as_the_pipeline_runs_them():
    """Without gradients; and on one thread, for on small images and busy cores threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def make(name: str, ratio: int, shape: tuple[int, int], *, msi_bands: int = MSI_BANDS, seed: int = 0):
    """A method built on random images of one scene, and those images; the shape grows to multiples of its windows."""
    rng = torch.Generator().manual_seed(seed)
    observed = Observed(hsi_bands=BANDS, msi_bands=msi_bands, ratio=ratio, psf_sigma_px=0.5 * ratio)
    method = models.method(name)
    spec = method.specify(observed)
    shape = padded(spec, shape[0]), padded(spec, shape[1])
    hsi = torch.rand(1, BANDS, *shape, generator=rng)
    msi = torch.rand(1, msi_bands, shape[0] * ratio, shape[1] * ratio, generator=rng)
    sums = None
    if spec.needs_first_pass:
        sums = method.first_pass(spec).sums(hsi, msi, torch.ones(1, *shape, dtype=torch.bool))
    return method.build(spec, sums), hsi, msi


def padded(spec: ModelSpec, size: int) -> int:
    return -(-size // spec.multiple_of) * spec.multiple_of


@pytest.mark.parametrize("ratio", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("name", models.available())
def test_shape_and_dtype(name, ratio):
    model, hsi, msi = make(name, ratio, (10, 13))
    fused = model(hsi, msi)
    assert fused.shape == (1, BANDS, *msi.shape[-2:])
    assert hsi.shape[-2:] == (padded(model.spec, 10), padded(model.spec, 13))
    assert fused.dtype == torch.float32
    assert torch.isfinite(fused).all()


@pytest.mark.parametrize("name", models.available())
def test_one_band_msi_is_pansharpening(name):
    model, hsi, msi = make(name, 4, (12, 12), msi_bands=1)
    assert model(hsi, msi).shape == (1, BANDS, *msi.shape[-2:])


@pytest.mark.parametrize("name", models.available())
def test_runs_are_equal_and_images_independent(name):
    model, hsi, msi = make(name, 4, (10, 12))
    _, other_hsi, other_msi = make(name, 4, (10, 12), seed=1)
    alone = model(hsi, msi)
    assert torch.equal(alone, model(hsi, msi))
    together = model(torch.cat([other_hsi, hsi]), torch.cat([other_msi, msi]))
    torch.testing.assert_close(together[1:], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", models.available())
def test_inputs_are_left_alone(name):
    model, hsi, msi = make(name, 3, (10, 12))
    before = hsi.clone(), msi.clone()
    model(hsi, msi)
    assert torch.equal(hsi, before[0])
    assert torch.equal(msi, before[1])


@pytest.mark.parametrize("name", models.available())
def test_nothing_beyond_the_halo_matters(name):
    """The halo covers the receptive field: noise beyond it changes not one bit that rounding would not."""
    ratio = 4
    model, hsi, msi = make(name, ratio, (40, 40))
    if not model.spec.exact:
        pytest.skip(f"{name} is approximate by its own word")
    halo = model.spec.halo
    if halo >= 8:
        pytest.skip(f"the halo of {name} is larger than the image; its own tests tile it")
    other_hsi, other_msi = hsi + 1.0, msi + 1.0
    core = slice(8, 32)
    window = slice(8 - halo, 32 + halo)
    fine = slice(window.start * ratio, window.stop * ratio)
    other_hsi[..., window, window] = hsi[..., window, window]
    other_msi[..., fine, fine] = msi[..., fine, fine]
    at = slice(core.start * ratio, core.stop * ratio)
    torch.testing.assert_close(
        model(other_hsi, other_msi)[..., at, at], model(hsi, msi)[..., at, at], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", models.available())
def test_reach_is_true(name):
    """One changed HSI pixel and one changed MSI pixel touch nothing farther away than the method says."""
    ratio, center = 4, 15
    model, hsi, msi = make(name, ratio, (31, 31))
    plain = model(hsi, msi)
    changed = hsi.clone()
    changed[..., center, center] += 10.0
    moved = (model(changed, msi) - plain).abs().amax(dim=(0, 1)) > 1e-4
    touched = torch.nonzero(moved).float()
    low, high = (center - model.spec.hsi_reach) * ratio, (center + model.spec.hsi_reach + 1) * ratio
    assert touched.min() >= low
    assert touched.max() < high
    changed = msi.clone()
    changed[..., 60, 60] += 10.0
    moved = (model(hsi, changed) - plain).abs().amax(dim=(0, 1)) > 1e-4
    if model.spec.msi_reach is None:
        assert not moved.any()
    else:
        assert (torch.nonzero(moved) - 60).abs().max() <= model.spec.msi_reach


@pytest.mark.parametrize("name", models.available())
def test_card_names_its_paper(name):
    card = models.method(name).card
    assert card.title
    assert "(" in card.paper
    assert "Apache" in card.code or "MIT" in card.code


@pytest.mark.parametrize("name", [n for n in models.available() if n == "gsa"])
def test_missing_sums_are_named(name):
    method = models.method(name)
    spec = method.specify(Observed(hsi_bands=3, msi_bands=1, ratio=2, psf_sigma_px=1.0))
    with pytest.raises(ValueError, match=f"{name} needs the sums"):
        method.build(spec, None)


def test_unknown_method_lists_the_known():
    with pytest.raises(LookupError, match=r"no network 'nope'.*bicubic"):
        models.method("nope")
