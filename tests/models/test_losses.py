from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from hyperfuse.models import losses

ALL = {
    "pixel": losses.pixel,
    "beba": losses.beba,
    "beba-released": partial(losses.beba, phi="released"),
    "sam": losses.sam,
    "sam-symmetric": partial(losses.sam, form="symmetric"),
    "sam-released": partial(losses.sam, form="released"),
    "wavelet": losses.wavelet,
    "response": losses.response,
    "feature": losses.feature,
}


def images(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, *shape, generator=rng, dtype=torch.float64) * 2 - 1
    return x, y


def spectrum(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[None, :, None, None]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("case", ["random", "equal", "zero", "darkest", "opposite"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_finite(name, case, dtype):
    x, y = (t.to(dtype) for t in images(2, 5, 7, 9))
    x = {
        "random": x,
        "equal": y.clone(),
        "zero": torch.zeros_like(x),
        "darkest": torch.full_like(x, -1.0),
        "opposite": -y,
    }[case].requires_grad_()
    target = x.detach() if case in {"zero", "darkest"} else y
    for against in (target, y):
        (gradient,) = torch.autograd.grad(loss := ALL[name](x, against), x)
        assert loss.shape == ()
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["pixel", "beba", "sam", "sam-symmetric", "sam-released", "wavelet", "response"])
def test_nothing_is_lost_at_equality(name):
    x, _ = images(2, 5, 7, 9)
    assert ALL[name](x, x.clone()).abs() < 1e-12


def test_pixel_by_hand():
    # 0.5 * 0.4^2 = 0.08 and 2 - 0.5 = 1.5
    assert losses.pixel(spectrum(0.4, 2.0), spectrum(0.0, 0.0)) == pytest.approx((0.08 + 1.5) / 2)


def test_beba_by_hand():
    x, y = spectrum(0.6, 2.0), spectrum(0.2, 0.5)
    # Huber gives 0.08 and 1, the energies are 0.04 + 0.1 and 0.25 + 0.1.
    assert losses.beba(x, y) == pytest.approx((0.08 / 0.14 + 1.0 / 0.35) / 2)
    # The released form gives 0.08 less a half, and 1.125 + 0.5 less a half.
    assert losses.beba(x, y, phi="released") == pytest.approx((-0.42 / 0.14 + 1.125 / 0.35) / 2)


def test_released_beba_is_negative_with_the_gradient_of_hubers():
    x, y = images(2, 5, 7, 9)
    x = (y + 0.4 * x).requires_grad_()  # |d| < 1
    ours, released = (losses.beba(x, y), losses.beba(x, y, phi="released"))
    assert released < 0 < ours
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (ours, released)))


def test_sam_by_hand():
    # In unit space (1, 0.001) and (0.5, 0.5): 45 degrees less the angle of the darkest value.
    expected = math.pi / 4 - math.atan(1e-3)
    assert losses.sam(spectrum(1.0, -1.0), spectrum(0.0, 0.0)) == pytest.approx(expected, rel=1e-9)
    assert losses.sam(spectrum(1.0, 0.0), spectrum(1.0, 1.0), form="symmetric") == pytest.approx(math.pi / 4)
    assert losses.sam(spectrum(0.0, 0.0), spectrum(1.0, 1.0), form="symmetric") == pytest.approx(math.pi / 2)


def test_sam_is_blind_to_gain_where_light_is_measured():
    reflectance = torch.rand(1, 6, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.8 + 0.1
    x, y = (2 * gain * reflectance - 1 for gain in (1.0, 0.5))
    assert losses.sam(x, y) < 1e-12
    assert losses.sam(x, y, form="symmetric") > 0.1
    assert losses.sam(0.3 * x, x, form="symmetric") < 1e-12


def test_sam_keeps_small_angles_in_single_precision():
    y = torch.tensor([1.0, 0.0])[None, :, None, None]
    x = torch.tensor([1.0, 1e-4])[None, :, None, None]
    assert losses.sam(x, y, form="symmetric") == pytest.approx(1e-4, rel=1e-3)


def test_released_sam_compares_runs_of_pixels():
    """A gain per pixel turns no spectrum, but tilts the runs; a gain per band does the reverse where a run is a band."""
    y = images(1, 4, 2, 2)[1].abs() + 0.1
    per_pixel = torch.tensor([[1.0, 3.0], [2.0, 0.5]], dtype=torch.float64) * y
    per_band = torch.tensor([1.0, 3.0, 2.0, 0.5], dtype=torch.float64)[None, :, None, None] * y
    assert losses.sam(per_pixel, y, form="symmetric") < 1e-7
    assert losses.sam(per_pixel, y, form="released") > 0.01
    assert losses.sam(per_band, y, form="symmetric") > 0.1
    assert losses.sam(per_band, y, form="released") < 1e-12


def test_sym19_is_what_its_name_says():
    """Orthonormal under even shifts, and blind to polynomials up to degree 18."""
    low = torch.tensor(losses.SYM19, dtype=torch.float64)
    assert len(low) == 38
    assert low.sum() == pytest.approx(math.sqrt(2), abs=1e-10)
    for shift in range(0, 38, 2):
        assert (low[shift:] * low[: 38 - shift]).sum() == pytest.approx(float(shift == 0), abs=1e-10)
    x = (torch.arange(38, dtype=torch.float64) - 18.5) / 18.5
    high = low.flip(0) * (-1.0) ** torch.arange(1, 39)
    for degree in range(19):
        assert abs((high * x**degree).sum()) < 1e-7


def test_wavelet_of_a_constant_is_its_low_pass_alone():
    x = torch.full((2, 3, 8, 10), 0.5, dtype=torch.float64)
    assert losses.wavelet(x, torch.zeros_like(x)) == pytest.approx(3 * 0.01 * 0.5, rel=1e-9)


def test_wavelet_equals_a_loop_over_filters():
    x, y = images(2, 3, 11, 45)
    low = torch.tensor(losses.SYM19, dtype=torch.float64)
    high = torch.tensor([(-1.0) ** (k + 1) * losses.SYM19[37 - k] for k in range(38)], dtype=torch.float64)
    expected = 0.0
    for along_y in (low / low.sum(), high):
        for along_x in (low / low.sum(), high):
            d = x - y
            d = sum(c * torch.roll(d, k, -2) for k, c in enumerate(along_y))
            d = sum(c * torch.roll(d, k, -1) for k, c in enumerate(along_x))
            expected += 0.01 * d.abs().mean(dim=(0, 2, 3)).sum()
    assert losses.wavelet(x, y) == pytest.approx(float(expected), rel=1e-10)


def test_wavelet_does_not_see_where_the_scene_begins():
    x, y = images(2, 3, 40, 45)
    moved = (torch.roll(t, (5, 7), (-2, -1)) for t in (x, y))
    assert losses.wavelet(*moved) == pytest.approx(float(losses.wavelet(x, y)), rel=1e-12)


def test_distillation_leaves_the_teacher_alone():
    student, teacher = (t.requires_grad_() for t in images(2, 3, 5, 5))
    (losses.response(student, teacher) + losses.feature(student, teacher)).backward()
    assert teacher.grad is None
    assert (student.grad != 0).any()


def test_feature_by_hand():
    zero = torch.zeros(1, 1, 1, 1)
    assert losses.feature(zero, zero) == pytest.approx(math.log(2))
    # target sigmoid(ln 3) = 3/4, student probability 1/2
    assert losses.feature(zero, zero + math.log(3)) == pytest.approx(math.log(2))
    gradient = torch.autograd.functional.jacobian(lambda s: losses.feature(s, zero + math.log(3)), zero)
    assert gradient.item() == pytest.approx(0.5 - 0.75)


def test_residuals_are_measured_by_themselves():
    rng = torch.Generator().manual_seed(0)
    y = torch.randn(2, 3, 8, 8, generator=rng) * torch.tensor([10.0, 0.1]).view(2, 1, 1, 1)
    assert losses.relative(torch.zeros_like(y), y) == pytest.approx(1.0, abs=0.01)
    assert losses.relative(0.5 * y, y) == pytest.approx(0.25, abs=0.01)
    assert losses.absolute(y + 2.0, y) == pytest.approx(2.0, rel=1e-5)
