"""The QGIS style beside the GeoTIFF: bands and stretch against what GDAL reads from the image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from defusedxml.ElementTree import parse
from PIL import Image

from hyperfuse.pipeline.products.draft import BadProduct, Draft
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.publish import publish
from hyperfuse.pipeline.products.writers import writer

Make = Callable[..., Draft]
COLORS = ("red", "green", "blue")


def style_of(product: Product) -> tuple[list[int], list[tuple[float, float]]]:
    """Band numbers and stretch, as QGIS finds them: by the name of the image."""
    assert product.cog is not None
    renderer = parse(product.cog.with_suffix(".qml")).find("pipe/rasterrenderer")
    bands = [int(renderer.get(f"{color}Band")) for color in COLORS]
    ends = [[float(renderer.findtext(f"{c}ContrastEnhancement/{end}Value")) for end in ("min", "max")] for c in COLORS]
    return bands, [(low, high) for low, high in ends]


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_true_color_with_the_percentiles_of_the_valid_samples(finished_job: Make, dtype: str) -> None:
    product = publish(finished_job(n_bands=40, dtype=dtype))
    bands, limits = style_of(product)
    with rasterio.open(product.cog) as source:
        for nm, band, stretch in zip((665, 560, 490), bands, limits, strict=True):
            wavelengths = [float(source.tags(i)["wavelength"]) for i in source.indexes]
            assert band == 1 + int(np.argmin(np.abs(np.array(wavelengths) - nm)))
            assert source.descriptions[band - 1] == f"{wavelengths[band - 1]:.1f} nm"
            physical = source.read(band)[source.read_masks(band) > 0] * source.scales[band - 1]
            # Without the corner that is no data: -32768 counts would be far below.
            np.testing.assert_allclose(stretch, np.percentile(physical, (2, 98)), rtol=1e-4)


def test_the_picture_of_the_style_is_the_thumbnail(finished_job: Make) -> None:
    product = publish(finished_job(n_bands=40))
    bands, limits = style_of(product)
    thumbnail = np.asarray(Image.open(product.path / "thumbnail.png"))
    with rasterio.open(product.cog) as source:
        physical = source.read(bands) * source.scales[0]
    for plane, (low, high), drawn in zip(physical, limits, np.moveaxis(thumbnail, 2, 0), strict=False):
        expected = np.clip((plane - low) / (high - low), 0, 1) * 255
        opaque = thumbnail[..., 3] > 0
        np.testing.assert_allclose(drawn[opaque], expected[opaque], atol=1)


def test_without_visible_bands_the_three_of_the_thumbnail(finished_job: Make) -> None:
    bands, limits = style_of(publish(finished_job(n_bands=8, span_nm=(1500.0, 2400.0))))
    assert bands == [7, 5, 3]
    assert all(low < high for low, high in limits)


def test_one_value_is_a_gray(finished_job: Make) -> None:
    _, limits = style_of(publish(finished_job(cube=np.full((7, 70, 90), 0.3, np.float32))))
    np.testing.assert_allclose(limits, [(-0.2, 0.8)] * 3, atol=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</qgis>", "", "not well-formed"),
        ("rasterrenderer", "renderer", "pipe/rasterrenderer is missing"),
        ('greenBand="2"', 'greenBand="3"', "greenBand is 3, expected 2"),
        ("<maxValue>", "<maxValue>-", "stretches red from"),
        ("<minValue>", "<minValue>low", "expected a number"),
    ],
)
def test_a_wrong_style_is_refused(finished_job: Make, old: str, new: str, message: str) -> None:
    draft = finished_job(n_bands=10)
    product = publish(draft)
    path = product.path / "fused.qml"
    assert old in path.read_text(encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(BadProduct, match=f"fused.qml.*{message}"):
        writer("cog").check(product.path, draft.provenance.product)


def test_a_product_of_a_version_without_styles_is_accepted(finished_job: Make) -> None:
    draft = finished_job()
    product = publish(draft)
    Path(product.path / "fused.qml").unlink()
    writer("cog").check(product.path, draft.provenance.product)
