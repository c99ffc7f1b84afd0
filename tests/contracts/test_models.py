"""What every fusion method promises, run over whatever methods are found."""

from __future__ import annotations

import pytest
import torch

from hyperfuse import models
from hyperfuse.models import ModelSpec, Observed
from hyperfuse.models.operators import degrade
from hyperfuse.models.spec import merge_sums
from tests.synthetic import methods_without_weights

BANDS, MSI_BANDS = 7, 3
TRAINING_FREE = methods_without_weights()
STEPS = [(), (1, 2, 2), (1, 2, 3)]
"""Of the MSI's bands: all of the product's pixel, as Sentinel-2's, and such that not every coarse pixel begins a block."""


@pytest.fixture(autouse=True)
def as_the_pipeline_runs_them():
    with torch.inference_mode():
        yield


def make(
    name: str,
    ratio: int,
    shape: tuple[int, int],
    *,
    msi_bands: int = MSI_BANDS,
    seed: int = 0,
    steps: tuple[int, ...] = (),
):
    """A method built on random images of one scene, and those images; the shape grows to multiples of its windows."""
    rng = torch.Generator().manual_seed(seed)
    observed = Observed(hsi_bands=BANDS, msi_bands=msi_bands, ratio=ratio, psf_sigma_px=0.5 * ratio, msi_steps=steps)
    method = models.method(name)
    spec = method.specify(observed)
    shape = padded(spec, shape[0]), padded(spec, shape[1])
    hsi = torch.rand(1, BANDS, *shape, generator=rng)
    msi = torch.rand(1, msi_bands, shape[0] * ratio, shape[1] * ratio, generator=rng)
    in_blocks(msi, steps)
    sums = None
    if spec.needs_first_pass:
        sums = method.first_pass(spec).sums(hsi, msi, torch.ones(1, *shape, dtype=torch.bool))
    return method.build(spec, sums), hsi, msi


def in_blocks(msi: torch.Tensor, steps: tuple[int, ...]) -> None:
    """Gives each band blocks of equal pixels, in place; what does not fill a block stays."""
    for band, step in enumerate(steps):
        height, width = (size // step * step for size in msi.shape[-2:])
        samples = msi[:, band, :height:step, :width:step]
        msi[:, band, :height, :width] = samples.repeat_interleave(step, dim=-2).repeat_interleave(step, dim=-1)


def padded(spec: ModelSpec, size: int) -> int:
    return -(-size // spec.multiple_of) * spec.multiple_of


def with_steps() -> list[tuple[str, tuple[int, ...]]]:
    """Every method on bands of step 1; those that need no weights on coarser ones too."""
    return [(name, steps) for name in models.available() for steps in STEPS if name in TRAINING_FREE or not steps]


def planes(ratio: int, steps: tuple[int, ...], size: int):
    """A scene whose bands are slanted planes in two directions, its pair, and its truth."""
    x = torch.arange(size * ratio, dtype=torch.float32)
    slopes = torch.stack([x[:, None] + 0 * x, x + 0 * x[:, None]]) / len(x)
    mix = torch.rand(BANDS + MSI_BANDS, 2, generator=torch.Generator().manual_seed(0)) + 0.2
    both = torch.einsum("ks,shw->khw", mix, slopes)[None] + 0.3
    truth, msi = both[:, :BANDS], both[:, BANDS:].clone()
    in_blocks(msi, steps)
    for band, step in enumerate(steps):  # a block holds the plane's value at its center, not in its corner
        msi[:, band] += (mix[BANDS + band].sum() * (step - 1) / 2) / len(x)
    return truth, degrade(truth, ratio, 0.5 * ratio), msi


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_blocks_of_coarser_bands_leave_no_edges(name):
    """Slopes come back as slopes: the steps of the MSI's blocks, which would be injected as detail, do not show."""
    ratio, steps, size = 4, (2, 2, 4), 24
    truth, hsi, msi = planes(ratio, steps, size)
    method = models.method(name)
    spec = method.specify(
        Observed(hsi_bands=BANDS, msi_bands=MSI_BANDS, ratio=ratio, psf_sigma_px=0.5 * ratio, msi_steps=steps)
    )
    sums = None
    if spec.needs_first_pass:
        sums = method.first_pass(spec).sums(hsi, msi, torch.ones(1, size, size, dtype=torch.bool))
    inner = (..., slice(6 * ratio, -6 * ratio), slice(6 * ratio, -6 * ratio))
    error = (method.build(spec, sums)(hsi, msi) - truth)[inner]
    one_block = (truth[..., steps[0] :, :] - truth[..., : -steps[0], :]).abs().mean()
    assert error.diff(dim=-1).abs().max() < 0.1 * one_block
    assert error.diff(dim=-2).abs().max() < 0.1 * one_block


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", TRAINING_FREE)
def test_windows_begin_on_whole_blocks(name, steps):
    observed = Observed(hsi_bands=BANDS, msi_bands=MSI_BANDS, ratio=2, psf_sigma_px=1.0, msi_steps=steps)
    spec = models.method(name).specify(observed)
    if spec.msi_reach is None:
        pytest.skip(f"{name} does not look at the MSI")
    assert spec.multiple_of % observed.whole_blocks == 0


@pytest.mark.parametrize("name", models.available())
def test_first_pass_streams(name):
    """Merging the parts of a scene, in either order, gives the pass over the whole."""
    ratio = 4
    method = models.method(name)
    model, hsi, msi = make(name, ratio, (40, 40))
    if not model.spec.needs_first_pass:
        pytest.skip(f"{name} needs none")
    summed = method.first_pass(model.spec)
    valid = torch.ones(1, *hsi.shape[-2:], dtype=torch.bool)
    left, right = valid.clone(), valid.clone()
    left[..., 17:], right[..., :17] = False, False
    whole = summed.sums(hsi, msi, valid)
    parts = [summed.sums(hsi, msi, part) for part in (left, right)]
    for total, part in (parts, reversed(parts)):
        merged = merge_sums(summed, total, part)
        assert merged.keys() == whole.keys()
        for key, value in merged.items():
            torch.testing.assert_close(value, whole[key])


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


@pytest.mark.parametrize(("name", "steps"), with_steps())
def test_nothing_beyond_the_halo_matters(name, steps):
    """The halo covers the receptive field: noise beyond it changes not one bit that rounding would not."""
    ratio = 4
    model, hsi, msi = make(name, ratio, (42, 42), steps=steps)
    if not model.spec.exact:
        pytest.skip(f"{name} is approximate by its own word")
    halo = model.spec.halo
    if halo > 15:
        pytest.skip(f"the halo of {name} is larger than the image; its own tests tile it")
    other_hsi, other_msi = hsi + 1.0, msi + 1.0
    core = slice(15, 27)
    window = slice(core.start - halo, core.stop + halo)
    fine = slice(window.start * ratio, window.stop * ratio)
    other_hsi[..., window, window] = hsi[..., window, window]
    other_msi[..., fine, fine] = msi[..., fine, fine]
    at = slice(core.start * ratio, core.stop * ratio)
    torch.testing.assert_close(
        model(other_hsi, other_msi)[..., at, at], model(hsi, msi)[..., at, at], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("name", "steps"), with_steps())
def test_reach_is_true(name, steps):
    """One changed HSI pixel and one changed MSI block touch nothing farther away than the method says."""
    ratio, center = 4, 15
    model, hsi, msi = make(name, ratio, (33, 33), steps=steps)
    plain = model(hsi, msi)
    changed = hsi.clone()
    changed[..., center, center] += 10.0
    if model.spec.masked:
        masks = torch.ones_like(hsi[:, :1], dtype=torch.bool), torch.ones_like(msi[:, :1], dtype=torch.bool)
        masks[0][..., center, center] = masks[1][..., 60, 60] = False
        other = msi.clone()
        other[..., 60, 60] += 10.0
        hidden = model(hsi, msi, *masks)
        torch.testing.assert_close(model(changed, other, *masks), hidden)  # what lies under a mask tells nothing
        assert (hidden - plain).abs().mean() < 0.05 * plain.std()  # and what was seen beside it stays
        return
    moved = (model(changed, msi) - plain).abs().amax(dim=(0, 1)) > 1e-4
    touched = torch.nonzero(moved).float()
    low, high = (center - model.spec.hsi_reach) * ratio, (center + model.spec.hsi_reach + 1) * ratio
    assert touched.min() >= low
    assert touched.max() < high
    block = slice(60, 60 + max(steps, default=1))
    changed = msi.clone()
    changed[..., block, block] += 10.0
    moved = (model(hsi, changed) - plain).abs().amax(dim=(0, 1)) > 1e-4
    if model.spec.msi_reach is None:
        assert not moved.any()
    else:
        touched = torch.nonzero(moved)
        assert touched.min() >= block.stop - 1 - model.spec.msi_reach
        assert touched.max() <= block.start + model.spec.msi_reach


@pytest.mark.parametrize("name", models.available())
def test_card_names_its_paper(name):
    card = models.method(name).card
    assert card.title
    assert "(" in card.paper
    assert "Apache" in card.code or "MIT" in card.code


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_missing_sums_are_named(name):
    method = models.method(name)
    spec = method.specify(Observed(hsi_bands=3, msi_bands=1, ratio=2, psf_sigma_px=1.0))
    if not spec.needs_first_pass:
        pytest.skip(f"{name} needs none")
    with pytest.raises(ValueError, match=f"{name} needs the sums"):
        method.build(spec, None)


def test_a_variant_with_the_empty_name_goes_by_its_module():
    assert {"gsa", "gsa-regressed"} <= set(models.available())
    assert "csakd" not in models.available()
    assert models.method("gsa").specify(Observed(hsi_bands=3, msi_bands=1, ratio=2, psf_sigma_px=1.0)).name == "gsa"


def test_unknown_method_lists_the_known():
    with pytest.raises(LookupError, match=r"no method 'nope'.*bicubic"):
        models.method("nope")
