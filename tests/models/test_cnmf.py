from __future__ import annotations

import pytest
import torch

from hyperfuse import models
from hyperfuse.models import cnmf
from tests.models.scenes import error, fused, mixtures, response, seen


def test_mixtures_of_pure_materials_come_back():
    """Four MSI bands tell three materials apart, so their abundances are known at the fine resolution."""
    truth, _, _ = mixtures(3)
    hsi, msi, observed = seen(truth, response(4, 12))
    control = error(fused("bicubic", hsi, msi, observed), truth)
    assert error(fused("cnmf", hsi, msi, observed), truth) < 0.1 * control


def test_endmembers_are_the_materials():
    truth, spectra, _ = mixtures(3)
    hsi, _, _ = seen(truth, response(4, 12))
    picked = cnmf._purest(hsi[0].flatten(1).double())[:3]
    found = hsi[0].flatten(1)[:, picked]
    cosine = torch.nn.functional.normalize(found, dim=0).T @ torch.nn.functional.normalize(spectra, dim=0)
    assert (cosine.amax(dim=0) > 0.999).all()


def test_units_of_the_two_images_do_not_matter():
    truth, _, _ = mixtures(3)
    hsi, msi, observed = seen(truth, response(4, 12), known=False)
    torch.testing.assert_close(
        fused("cnmf", hsi, 1e4 * msi, observed), fused("cnmf", hsi, msi, observed), rtol=1e-3, atol=1e-4
    )


def test_error_grows_with_noise():
    truth, _, _ = mixtures(3)
    errors = [
        error(fused("cnmf", *seen(truth, response(4, 12), noise=noise)), truth) for noise in (0.0, 0.01, 0.03, 0.1)
    ]
    assert errors == sorted(errors)


def test_abundances_and_spectra_are_not_negative():
    truth, _, _ = mixtures(3)
    hsi, msi, observed = seen(truth, response(4, 12), noise=0.1)
    assert hsi.min() < 0
    assert fused("cnmf", hsi, msi, observed).min() >= 0


def test_the_sample_does_not_depend_on_windows(monkeypatch):
    """Of a scene of 256 pixels the same 40 are kept, whatever windows it comes in and in what order."""
    monkeypatch.setattr(cnmf, "SAMPLE", 40)
    truth, _, _ = mixtures(3)
    hsi, msi, observed = seen(truth, response(4, 12), noise=0.01)
    method = models.method("cnmf")
    summed = method.first_pass(method.specify(observed))
    column = torch.arange(16).expand(1, 16, 16)

    def part(first: int, last: int) -> dict[str, torch.Tensor]:
        return summed.sums(hsi, msi, (column >= first) & (column < last))

    whole = part(0, 16)
    one, two, three = part(0, 3), part(3, 11), part(11, 16)
    left, right = summed.merge(summed.merge(one, two), three), summed.merge(three, summed.merge(two, one))
    assert len(whole["hsi"]) == 40
    for merged in (left, right):
        assert torch.equal(merged["hsi"], whole["hsi"])
        assert torch.equal(merged["msi"], whole["msi"])
    # The draw is spread over the scene, not taken from one window.
    shares = [torch.isin(part["key"], whole["key"]).sum() for part in (one, two, three)]
    assert min(shares) > 0


def test_too_few_pixels_are_refused_by_number():
    truth, _, _ = mixtures(2, size=3)
    hsi, msi, observed = seen(truth, response(4, 12))
    with pytest.raises(ValueError, match=r"at least 16 coarse pixels .* found 9"):
        fused("cnmf", hsi, msi, observed)
