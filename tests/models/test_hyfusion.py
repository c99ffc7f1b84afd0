from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hyperfuse import models
from hyperfuse.models import Observed, hyfusion
from hyperfuse.models.hyfusion import ERFB, HyFusion
from hyperfuse.models.multiply_adds import macs
from hyperfuse.pipeline.geometry.tiling import aligned
from tests.models.reference_hyfusion import plain

AVIRIS = Observed(hsi_bands=172, msi_bands=4, ratio=4, psf_sigma_px=1.7)
SMALL = {"blocks": [1, 1], "layers": 2, "width": 8, "growth": 4}


def make(ratio: int, shape: tuple[int, int], *, bands=12, msi_bands=3, dtype=torch.float64, gain=4.0, **options):
    """A network whose attention is far from uniform, and images in [-1, 1] whose sides are so many windows."""
    observed = Observed(hsi_bands=bands, msi_bands=msi_bands, ratio=ratio, psf_sigma_px=1.0)
    model = hyfusion.build(hyfusion.specify(observed, **{**SMALL, **options})).to(dtype)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, hyfusion.WindowLayer):  # as built, far pixels drown in rounding
                for weight in (layer.qkv.weight, layer.proj.weight, layer.fc1.weight, layer.fc2.weight):
                    weight.mul_(gain)
                layer.out.weight.mul_(gain / 2)
                layer.bias_table.mul_(20.0)
                layer.gamma.fill_(0.5)
    rng = torch.Generator().manual_seed(1)
    h, w = (n * model.spec.multiple_of for n in shape)
    hsi = torch.rand(1, bands, h, w, generator=rng, dtype=dtype) * 2 - 1
    msi = torch.rand(1, msi_bands, h * ratio, w * ratio, generator=rng, dtype=dtype) * 2 - 1
    return model, hsi, msi


def error(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return float((ours - truth).detach().abs().max() / truth.abs().max())


@torch.inference_mode()
def tiled(model: HyFusion, hsi, msi, *, core: int, halo: int, features=None, coarse_core: int = 0):
    """The image from windows of `core` coarse pixels and their halo, given the coarse part's features or not."""
    ratio, step, rate = model.spec.observed.ratio, model.spec.multiple_of, model.spec.two_rate.rate
    per = rate if coarse_core else ratio
    fused = hsi.new_empty(1, 1)
    size = hsi.shape[-2:]
    for y in range(0, size[0], core):
        for x in range(0, size[1], core):
            ends = min(y + core, size[0]), min(x + core, size[1])
            (y0, y1), (x0, x1) = (aligned(a, b, halo, step, n) for a, b, n in zip((y, x), ends, size, strict=True))
            images = (
                hsi[..., y0:y1, x0:x1],
                msi[..., y0 * ratio : y1 * ratio, x0 * ratio : x1 * ratio],
            )
            if coarse_core:
                part = model.coarse(*images)
            elif features is None:
                part = model(*images)
            else:
                part = model.fine(*images, features[..., y0 * rate : y1 * rate, x0 * rate : x1 * rate])
            if fused.ndim == 2:
                fused = part.new_full((1, part.shape[1], size[0] * per, size[1] * per), torch.nan)
            inner = part[..., (y - y0) * per : (ends[0] - y0) * per, (x - x0) * per : (ends[1] - x0) * per]
            fused[..., y * per : ends[0] * per, x * per : ends[1] * per] = inner
    return fused


@pytest.mark.parametrize(
    ("options", "millions", "halo_px"),
    [
        ({"blocks": [2, 2], "layers": 4}, 8.701, 96),
        ({"blocks": [2, 2], "layers": 5}, 10.92, 112),
        ({"blocks": [6, 6], "layers": 4}, 20.03, 224),
        ({"blocks": [6, 6], "layers": 5}, 25.57, 240),
    ],
)
def test_parameters_and_halo_are_the_specified(options, millions, halo_px):
    spec = hyfusion.specify(AVIRIS, **options)
    assert spec.parameters / 1e6 == pytest.approx(millions, abs=0.005)
    assert spec.halo * 4 == halo_px
    assert spec.multiple_of * 4 == 16
    assert (spec.hsi_reach, spec.msi_reach) == (spec.halo, spec.halo * 4)


def test_parameters_per_part():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        model = HyFusion(hyfusion.specify(AVIRIS, **hyfusion.VARIANTS["s"]))
        blocks = {width: ERFB(width, layers=4, window=8, growth=32) for width in (48, 192, 172)}
    assert {width: round(count(block) / 1e6, 3) for width, block in blocks.items()} == {
        48: 0.406,
        192: 2.425,
        172: 2.035,
    }
    heads = [[stage.heads for stage in block.stages] for block in blocks.values()]
    assert heads == [[8] * 4, [8] * 4, [4] * 4]
    parts = (model.spectral_head, model.spatial_head, model.spectral_tail, model.spatial_tail, model.merge, model.last)
    assert [count(part) for part in parts] == [304_320, 76_080, 165_984, 41_568, 148_780, 266_256]


@pytest.mark.parametrize("variant", ["s", "l"])
def test_fine_tiles_of_1024_cost_little_more_than_the_scene(variant):
    """On 2048 x 2048 there are two tiles per axis, with a halo on their inner sides."""
    spec = models.method(f"hyfusion-{variant}").specify(AVIRIS)
    assert spec.tile == 1024
    assert ((2048 + 2 * spec.two_rate.fine_halo * 4) / 2048) ** 2 <= 1.3


@pytest.mark.parametrize(("ratio", "rate", "step"), [(2, 1, 8), (3, 1, 8), (4, 2, 4), (6, 3, 8), (8, 4, 2), (9, 3, 8)])
@pytest.mark.parametrize("bands", [1, 12, 13])
def test_equals_the_plain_reference(ratio, rate, step, bands):
    model, hsi, msi = make(ratio, (2, 3 if step < 8 else 1), bands=bands, msi_bands=1, blocks=[1, 2], layers=4)
    assert (model.spec.two_rate.rate, model.spec.multiple_of) == (rate, step)
    expected = plain(model, hsi, msi)
    assert error(model(hsi, msi), expected) < 1e-12
    with torch.inference_mode():
        assert error(model(hsi, msi), expected) < 1e-12


def test_published_width_in_single_precision_equals_the_plain_reference():
    model, hsi, msi = make(
        4, (2, 3), bands=172, dtype=torch.float32, width=96, growth=32, blocks=[2, 2], layers=4, gain=1
    )
    with torch.inference_mode():
        assert error(model(hsi, msi), plain(model, hsi, msi)) < 1e-4


def test_strips_are_invisible(monkeypatch):
    model, hsi, msi = make(4, (5, 6))
    with torch.inference_mode():
        whole = model(hsi, msi)
        monkeypatch.setitem(hyfusion.STRIP_TOKENS, "cpu", 1)
        assert error(model(hsi, msi), whole) < 1e-13


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    ("ratio", "shape", "core"), [(3, (7, 1), 27), (4, (14, 1), 22), (4, (2, 11), 22), (6, (4, 1), 15), (6, (3, 2), 13)]
)
def test_tiles_equal_the_whole(ratio, shape, core, dtype, tolerance):
    model, hsi, msi = make(ratio, shape, dtype=dtype)
    spec, two = model.spec, model.spec.two_rate
    with torch.inference_mode():
        whole, features = model(hsi, msi), model.coarse(hsi, msi)
    assert error(tiled(model, hsi, msi, core=core, halo=spec.halo), whole) < tolerance
    assert error(tiled(model, hsi, msi, core=core, halo=two.fine_halo, features=features), whole) < tolerance
    assert features.shape[1:] == (two.channels, hsi.shape[-2] * two.rate, hsi.shape[-1] * two.rate)
    parts = tiled(model, hsi, msi, core=core, halo=two.coarse_halo, coarse_core=core)
    assert error(parts, features) < tolerance


def test_a_halo_one_window_smaller_leaves_seams():
    """So the tests of equality can fail: in both ways to tile, with cores that begin anywhere."""
    model, hsi, msi = make(4, (14, 1), gain=8.0)
    spec, two = model.spec, model.spec.two_rate
    with torch.inference_mode():
        whole, features = model(hsi, msi), model.coarse(hsi, msi)
    for halo, given in ((spec.halo, None), (two.fine_halo, features)):
        assert error(tiled(model, hsi, msi, core=11, halo=halo, features=given), whole) < 1e-12
        too_small = halo - spec.multiple_of
        assert error(tiled(model, hsi, msi, core=11, halo=too_small, features=given), whole) > 1e-11


@pytest.mark.parametrize("layers", [4, 5])
def test_one_bad_pixel_reaches_as_far_as_specified_and_hardly_less(layers):
    """NaN passes through every sum, however small its weight: the support itself, which decay cannot hide."""
    model, hsi, msi = make(4, (20, 1), dtype=torch.float32, blocks=[2, 2], layers=layers)
    spec, two = model.spec, model.spec.two_rate
    with torch.inference_mode():
        features = model.coarse(hsi, msi)
        farthest = {"whole": 0, "fine": 0}
        for bad in range(38, 42):  # every phase of the windows, far from both rims
            spoiled = hsi.clone()
            spoiled[..., bad, 0] = torch.nan
            of_features = features.clone()
            of_features[..., bad * two.rate, 0] = torch.nan
            for part, fused in (
                ("whole", model(spoiled, msi)),
                ("fine", model.fine(hsi, msi, of_features)),
                ("fine", model.fine(spoiled, msi, features)),
            ):
                rows = torch.nonzero(fused.isnan().any(dim=-1).any(dim=1)[0]).flatten() // 4
                farthest[part] = max(farthest[part], int((rows - bad).abs().max()))
    assert spec.hsi_reach - spec.multiple_of < farthest["whole"] <= spec.hsi_reach
    assert two.fine_halo - spec.multiple_of < farthest["fine"] <= two.fine_halo


def test_a_window_off_the_multiple_is_another_image():
    model, hsi, msi = make(4, (14, 5))
    step, halo = model.spec.multiple_of, model.spec.halo
    with torch.inference_mode():
        whole = model(hsi, msi)
        for first, equal in ((step, True), (step + 1, False)):
            part = model(hsi[..., first : first + 12 * step, :], msi[..., first * 4 : (first + 12 * step) * 4, :])
            inner = slice(halo * 4, (12 * step - halo) * 4)
            there = whole[..., first * 4 : (first + 12 * step) * 4, :][..., inner, :]
            assert (error(part[..., inner, :], there) < 1e-12) == equal


def test_sizes_off_the_multiple_are_refused():
    model, hsi, msi = make(4, (2, 2))
    with pytest.raises(ValueError, match="multiples of 4"):
        model(hsi[..., 1:], msi[..., 4:])
    with pytest.raises(ValueError, match="whole times as large"):
        model(hsi, msi[..., 16:])


def test_gradient_reaches_every_parameter():
    model, hsi, msi = make(4, (3, 3), dtype=torch.float32, layers=4)
    model.train()
    model(hsi, msi).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_gradient_is_that_of_differences():
    model, hsi, msi = make(3, (1, 1), bands=2, msi_bands=1, layers=3, gain=1.0)
    rng = torch.Generator().manual_seed(2)
    for name in ("merge_block.stages.1.fc2.weight", "spectral_tail.weight", "spatial_blocks.0.stages.1.bias_table"):
        p = model.get_parameter(name)
        (gradient,) = torch.autograd.grad(model(hsi, msi).square().sum(), p)
        step = torch.randn(p.shape, generator=rng, dtype=p.dtype) * 1e-5
        with torch.no_grad():
            p += step
            above = model(hsi, msi).square().sum()
            p -= 2 * step
            below = model(hsi, msi).square().sum()
            p += step
        assert float((gradient * step).sum()) == pytest.approx(float(above - below) / 2, rel=1e-5)


def test_two_builds_are_equal_and_leave_the_global_seed_alone():
    spec = hyfusion.specify(AVIRIS, **SMALL)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two = hyfusion.build(spec), hyfusion.build(spec)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not one.training


def test_weights_are_loaded_whole():
    spec = hyfusion.specify(AVIRIS, **SMALL)
    weights = {name: 2 * tensor for name, tensor in hyfusion.build(spec).state_dict().items()}
    assert sum(tensor.numel() for tensor in weights.values()) == spec.parameters
    loaded = hyfusion.build(spec, None, weights).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    with pytest.raises(ValueError, match=r"merge\.weight"):
        hyfusion.build(spec, None, {**weights, "merge.weight": weights["merge.weight"][:-1]})
    del weights["spatial_head.bias"]
    with pytest.raises(ValueError, match=r"spatial_head\.bias"):
        hyfusion.build(spec, None, weights)
    with pytest.raises(ValueError, match="window"):
        hyfusion.build(replace(spec, options={**spec.options, "window": 4}), None, hyfusion.build(spec).state_dict())


@pytest.mark.parametrize("wrong", [{"blocks": [2]}, {"blocks": [0, 2]}, {"layers": 1}, {"window": 7}, {"width": 6}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="hyfusion cannot be built"):
        hyfusion.specify(AVIRIS, **{**SMALL, **wrong})


@pytest.mark.parametrize(("name", "layers", "gmacs"), [("s", 4, 327.7), ("s", 5, 416.6), ("l", 4, 609.5)])
def test_macs_are_those_of_the_drawn_network(name, layers, gmacs):
    """The fast forward does less; what is reported is comparable with what others count."""
    seen = Observed(hsi_bands=172, msi_bands=4, ratio=4, psf_sigma_px=2.0)
    spec = models.method(f"hyfusion-{name}").specify(seen, layers=layers)
    assert macs(spec) == pytest.approx(gmacs * 1e9, rel=1e-3)


def test_the_streams_meet_in_the_inputs_and_in_the_merge_alone():
    """What the module says of their coupling: SpaNet's part of the merge is the same whatever SpeNet's features are."""
    model, hsi, msi = make(4, (1, 1))
    parts = []
    with torch.inference_mode():
        model.spatial_tail.register_forward_hook(lambda _module, _inputs, output: parts.append(output.clone()))
        features = model.coarse(hsi, msi)
        for given in (features, features.flip(-1) + 1.0):
            model.fine(hsi, msi, given)
        assert torch.equal(*parts)
        assert (model.coarse(hsi, msi.flip(-1)) != features).any()  # SpeNet sees the MSI ...
        model.fine(hsi.flip(-1), msi, features)
        assert (parts[2] != parts[0]).any()  # ... and SpaNet the HSI
