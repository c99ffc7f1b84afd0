"""CSAKD and S3RNet: the anchors of the released code, and the fast forward against the plain one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from hyperfuse import models
from hyperfuse.models import Observed, TwoRateModel
from hyperfuse.models._dense import DenseUnit
from hyperfuse.models._winograd import dense_stack
from hyperfuse.models.csakd import CSAKD, _bilinear, _nearest, build, specify
from hyperfuse.models.multiply_adds import macs
from tests.models.reference_csakd import attention, plain

SMALL = {"layers": [1, 0, 1, 0], "grouped": True}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


def observed(bands=12, msi_bands=3, ratio=4):
    return Observed(hsi_bands=bands, msi_bands=msi_bands, ratio=ratio, psf_sigma_px=0.5 * ratio)


def images(seen, shape, *, dtype=torch.float32, n=1):
    rng = torch.Generator().manual_seed(3)
    hsi = torch.rand(n, seen.hsi_bands, *shape, generator=rng, dtype=dtype) * 2 - 1
    msi = torch.rand(n, seen.msi_bands, shape[0] * seen.ratio, shape[1] * seen.ratio, generator=rng, dtype=dtype)
    return hsi, msi * 2 - 1


def loud(model):
    """The model with dense units as strong as Kaiming's weights make them: the released 0.1 would hide errors."""
    with torch.no_grad():
        for unit in model.modules():
            if isinstance(unit, DenseUnit):
                for conv in unit.convs:
                    conv.weight.mul_(10)
    return model


def difference(one, other):
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize(
    ("name", "msi_bands", "parameters", "gmacs", "halos"),
    [
        ("csakd-teacher", 4, 26_807_686, 941.83, (92, 91, 24)),
        ("csakd-teacher", 6, 26_812_330, None, (92, 91, 24)),
        ("csakd-student", 4, 7_449_946, 144.83, (62, 61, 5)),
        ("csakd-student", 6, 7_454_590, None, (62, 61, 5)),
        ("s3rnet-published", 4, 26_807_686, 941.83, (92, 91, 24)),
    ],
)
def test_counts_and_halos_are_those_of_the_released_code(name, msi_bands, parameters, gmacs, halos):
    """Measured on the authors' model definition; see `models.csakd`."""
    spec = models.method(name).specify(observed(172, msi_bands))
    assert spec.parameters == parameters
    assert (spec.halo, spec.two_rate.coarse_halo, spec.two_rate.fine_halo) == halos
    if gmacs:
        assert macs(spec) == pytest.approx(gmacs * 1e9, rel=1e-3)


def test_released_student_stores_a_branch_that_it_skips():
    spec = specify(observed(172, 4), layers=[1, 4, 4, 1], grouped=True, dead_branch=True)
    with torch.device("meta"):
        assert sum(p.numel() for p in CSAKD(spec).parameters()) == 8_748_718
    assert (spec.parameters, spec.halo) == (7_449_946, 62)


@pytest.mark.parametrize("name", ["bicubic", "gsa"])
def test_methods_without_weights_have_no_macs(name):
    assert macs(models.method(name).specify(observed())) == 0


@pytest.mark.parametrize("ratio", [2, 3, 5, 8, 10])
@pytest.mark.parametrize("name", ["csakd-teacher", "csakd-student", "s3rnet-paper"])
def test_fast_equals_plain(name, ratio):
    method = models.method(name)
    model = loud(method.build(method.specify(observed(9, 2, ratio)))).double()
    hsi, msi = images(model.spec.observed, (7, 9), dtype=torch.float64, n=2)
    with torch.inference_mode():
        assert difference(model(hsi, msi), plain(model, hsi, msi)) < 1e-12
    assert difference(model(hsi, msi).detach(), plain(model, hsi, msi).detach()) < 1e-12


def test_fast_equals_plain_where_winograd_runs():
    spec = models.method("csakd-student").specify(observed(172, 4))
    model = build(spec, None)
    hsi, msi = images(spec.observed, (14, 17))
    with torch.inference_mode():
        assert difference(model(hsi, msi), plain(model, hsi, msi)) < 1e-4


@pytest.mark.parametrize("shape", [(16, 16), (18, 21), (37, 7)])
def test_winograd_equals_the_direct_sum(shape, monkeypatch):
    unit = DenseUnit(10, 5).double()
    x = torch.rand(2, 10, *shape, dtype=torch.float64)
    with torch.no_grad():
        whole = dense_stack(x, list(unit.convs))
        torch.testing.assert_close(x + 0.2 * whole, unit(x), rtol=1e-12, atol=1e-12)
        monkeypatch.setattr("hyperfuse.models._winograd._STRIP_BYTES", 1)
        monkeypatch.setattr("hyperfuse.models._winograd._CHUNK_TILES", 1)
        torch.testing.assert_close(dense_stack(x, list(unit.convs)), whole, rtol=1e-12, atol=1e-12)


def test_released_attention_does_not_depend_on_queries_and_keys():
    """Softmax rows sum to 1, and values are summed apart: what is left is each head's sum of values."""
    spec = specify(observed(), layers=[0, 0, 0, 0], grouped=False)
    fusion = build(spec, None).fusion.double()
    streams = [torch.randn(1, 6, 8, 8, dtype=torch.float64) for _ in range(3)]
    with torch.no_grad():
        literal = attention(fusion, *streams)
        closed = fusion.value(streams[2]).unflatten(1, (4, 16)).sum(dim=2).repeat_interleave(16, dim=1)
        assert difference(closed, literal) < 1e-6
        coarse = functional.avg_pool2d(streams[2], 4)
        ours = fusion._attended(fusion._mixing(coarse, streams[1]), coarse)
        nearest = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
        assert difference(_nearest(ours, 4), fusion.output(attention(fusion, *streams[:2], nearest))) < 1e-6
        for layer in (fusion.query, fusion.key):
            layer.weight.normal_()
        assert difference(attention(fusion, *streams), literal) < 1e-6


@pytest.mark.parametrize("ratio", [3, 4, 5, 6, 10])
def test_bilinear_is_that_of_the_library(ratio):
    x = torch.rand(1, 2, 6, 5, dtype=torch.float64)
    expected = functional.interpolate(x, scale_factor=ratio, mode="bilinear", align_corners=False)
    torch.testing.assert_close(_bilinear(x, ratio), expected, rtol=1e-12, atol=1e-12)
    lone = x[..., :1, :1]
    torch.testing.assert_close(_bilinear(lone, ratio), lone.expand(-1, -1, ratio, ratio), rtol=1e-12, atol=1e-12)


def tiled(model, hsi, msi, *, core, halo, two_rate, ratio):
    """The output put together from windows of `core` coarse pixels with `halo` around them."""
    height, width = hsi.shape[-2:]
    out = torch.empty(1, hsi.shape[1], height * ratio, width * ratio, dtype=hsi.dtype)

    def windows(size, halo):
        for start in range(0, size, core):
            stop = min(start + core, size)
            yield start, stop, max(0, start - halo), min(size, stop + halo)

    features = None
    if two_rate:
        features = torch.cat([
            torch.cat([
                model.coarse(hsi[..., y0:y1, x0:x1], msi[..., y0 * ratio : y1 * ratio, x0 * ratio : x1 * ratio])[
                    ..., top - y0 : bottom - y0, left - x0 : right - x0]
                for left, right, x0, x1 in windows(width, two_rate.coarse_halo)], dim=-1)
            for top, bottom, y0, y1 in windows(height, two_rate.coarse_halo)], dim=-2)  # fmt: skip
    for top, bottom, y0, y1 in windows(height, halo):
        for left, right, x0, x1 in windows(width, halo):
            window = hsi[..., y0:y1, x0:x1], msi[..., y0 * ratio : y1 * ratio, x0 * ratio : x1 * ratio]
            part = model(*window) if features is None else model.fine(*window, features[..., y0:y1, x0:x1])
            rows = slice((top - y0) * ratio, (bottom - y0) * ratio)
            cols = slice((left - x0) * ratio, (right - x0) * ratio)
            out[..., top * ratio : bottom * ratio, left * ratio : right * ratio] = part[..., rows, cols]
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("two_rate", [False, True])
@pytest.mark.parametrize("ratio", [2, 3, 4, 6])
@pytest.mark.parametrize("layers", [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
def test_tiles_equal_the_whole(layers, ratio, two_rate, dtype):
    spec = specify(observed(ratio=ratio), layers=layers, grouped=True)
    model = loud(build(spec, None)).to(dtype)
    hsi, msi = images(spec.observed, (26, 37), dtype=dtype)
    rates = spec.two_rate if two_rate else None
    halo = rates.fine_halo if rates else spec.halo
    with torch.inference_mode():
        whole = model(hsi, msi)
        out = tiled(model, hsi, msi, core=9, halo=halo, two_rate=rates, ratio=ratio)
        limit = 1e-5 if dtype == torch.float32 else 1e-12
        assert difference(out, whole) < limit
        if dtype == torch.float64:  # the test sees one coarse pixel too few
            out = tiled(model, hsi, msi, core=9, halo=halo - 1, two_rate=rates, ratio=ratio)
            assert difference(out, whole) > limit
            if rates and rates.coarse_halo > 0:
                short = replace(rates, coarse_halo=rates.coarse_halo - 1)
                out = tiled(model, hsi, msi, core=9, halo=halo, two_rate=short, ratio=ratio)
                assert difference(out, whole) > limit


@pytest.mark.parametrize("two_rate", [False, True])
@pytest.mark.parametrize("ratio", [3, 4])
def test_tiles_of_the_student_equal_the_whole(ratio, two_rate):
    method = models.method("csakd-student")
    spec = method.specify(observed(ratio=ratio))
    model = loud(method.build(spec)).double()
    assert isinstance(model, TwoRateModel)
    hsi, msi = images(spec.observed, (6, 90), dtype=torch.float64)
    rates = spec.two_rate if two_rate else None
    with torch.inference_mode():
        out = tiled(model, hsi, msi, core=20, halo=rates.fine_halo if rates else spec.halo, two_rate=rates, ratio=ratio)
        assert difference(out, model(hsi, msi)) < 1e-12


def test_tiles_equal_the_whole_where_winograd_runs():
    spec = specify(observed(96, 4), layers=[0, 0, 0, 1], grouped=False)
    model = loud(build(spec, None))
    hsi, msi = images(spec.observed, (31, 38))
    with torch.inference_mode():
        out = tiled(model, hsi, msi, core=17, halo=spec.two_rate.fine_halo, two_rate=spec.two_rate, ratio=4)
        assert difference(out, model(hsi, msi)) < 1e-5


@pytest.mark.parametrize("module", ["csakd", "s3rnet"])
def test_channel_attention_is_exact_over_tiles(module):
    name = {"csakd": "csakd-student", "s3rnet": "s3rnet-paper"}[module]
    method = models.method(name)
    spec = method.specify(observed(), layers=[0, 1, 1, 1], attention="channel")
    assert spec.needs_first_pass
    margin = method.first_pass(spec).margin
    hsi, msi = images(spec.observed, (11, 45), dtype=torch.float64)
    pass_over = method.first_pass(spec)
    pass_over._model.double()
    with torch.inference_mode():
        summed = {}
        for start in (0, 15, 30):
            first, last = max(0, start - margin), min(45, start + 15 + margin)
            valid = torch.zeros(1, 11, last - first, dtype=torch.bool)
            valid[..., start - first : start + 15 - first] = True
            part = pass_over.sums(hsi[..., first:last], msi[..., first * 4 : last * 4], valid)
            summed = {key: value + summed.get(key, 0) for key, value in part.items()}
        whole = method.build(spec).double()(hsi, msi)
        model = method.build(spec, summed).double()
        out = tiled(model, hsi, msi, core=15, halo=spec.two_rate.fine_halo, two_rate=spec.two_rate, ratio=4)
        assert difference(out, whole) < 1e-12
        alone = method.build(spec).double()
        out = tiled(alone, hsi, msi, core=15, halo=spec.two_rate.fine_halo, two_rate=spec.two_rate, ratio=4)
        assert difference(out, whole) > 1e-12


def test_invalid_pixels_do_not_enter_the_sums():
    method = models.method("s3rnet-paper")
    spec = method.specify(observed(), layers=[0, 0, 0, 0])
    hsi, msi = images(spec.observed, (8, 8))
    valid = torch.rand(1, 8, 8) > 0.5
    sums = method.first_pass(spec).sums(hsi, msi, valid)
    rest = method.first_pass(spec).sums(hsi, msi, ~valid)
    total = method.first_pass(spec).sums(hsi, msi, torch.ones_like(valid))
    for key, value in total.items():
        torch.testing.assert_close(sums[key] + rest[key], value)


@pytest.mark.parametrize(
    ("name", "inert"),
    [
        ("csakd-teacher", ("fusion.query", "fusion.key")),
        ("csakd-student", ("fusion.query", "fusion.key")),
        ("s3rnet-paper", ()),
    ],
)
def test_gradient_reaches_every_parameter_that_takes_part(name, inert):
    method = models.method(name)
    model = loud(method.build(method.specify(observed())))
    hsi, msi = images(model.spec.observed, (6, 6))
    out, feature = model(hsi, msi, return_feature=True)
    assert feature.shape == (1, 6, 24, 24)
    (out.square().mean() + feature.mean()).backward()
    for key, parameter in model.named_parameters():
        if key.startswith(inert):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, key
            assert parameter.grad.abs().max() > 0, key


def test_two_builds_are_equal_and_leave_the_generator_alone():
    spec = specify(observed(), **SMALL)
    state = torch.get_rng_state()
    one, other = build(spec, None).state_dict(), build(spec, None).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_must_fit():
    spec = specify(observed(), **SMALL)
    weights = {key: value + 0.01 for key, value in build(spec, None).state_dict().items()}
    assert torch.equal(build(spec, None, weights).expand.bias, weights["expand.bias"])
    with pytest.raises(ValueError, match=r"last\.weight"):
        build(spec, None, {key: value for key, value in weights.items() if key != "last.weight"})
    with pytest.raises(ValueError, match=r"expand\.bias"):
        build(spec, None, {**weights, "expand.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="surplus"):
        build(spec, None, {**weights, "surplus": torch.zeros(3)})


def test_model_is_in_evaluation_mode_and_trainable():
    model = build(specify(observed(), **SMALL), None)
    assert isinstance(model, nn.Module)
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("options", [{"layers": [1, 2, 3]}, {"attention": "none"}, {"head_convs": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=r"layers|attention"):
        specify(observed(), **{**SMALL, **options})


def test_sums_must_be_whole():
    spec = specify(observed(), **SMALL, attention="channel")
    with pytest.raises(ValueError, match="gram"):
        build(spec, {"query": torch.zeros(4, 16), "key": torch.zeros(4, 16)})
