"""Batches and halves of tiles: memory decides how many pixels are computed at once, never what they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hyperfuse.catalogs.errors import OutOfResources
from hyperfuse.pipeline.fusion import tile_fuser as fuse
from hyperfuse.pipeline.run import run
from tests.pipeline.fusion.test_weights import weight_file
from tests.synthetic import config

RECIPE = "height=64&width=416&ratio=4&bands=12&seed=3&holes_hsi=0.01"
"""So long that some tiles see no rim, and their windows are alike."""
SETTINGS = {
    "publish__formats": "[zarr]", "publish__dtype": "float32", "tiles__core": 32, "tiles__chunk": 32, "quality__gate": "off",
}  # fmt: skip


def fused(product) -> np.ndarray:
    with product.open() as data:
        return data["reflectance"].values


@pytest.fixture(params=["map_subspace", "gsa", "csakd-student", "gsa strict"])
def settings(request, tmp_path) -> dict[str, object]:
    """One method of each kind: with masks, plain, with two rates, and back-projected."""
    network, _, strict = request.param.partition(" ")
    chosen = SETTINGS | {"method": network, "strict": bool(strict)}
    if request.param == "csakd-student":
        chosen["weights"] = str(weight_file(tmp_path / "w.safetensors", request.param))
    return chosen


@pytest.fixture
def calls(monkeypatch) -> list[torch.Size]:
    """Shapes of the HSI windows that the method is called with."""
    shapes: list[torch.Size] = []
    sound = fuse.TileFuser._call

    def call(self, part):
        shapes.append(part.layers[0][0].shape)
        return sound(self, part)

    monkeypatch.setattr(fuse.TileFuser, "_call", call)
    return shapes


def test_batches_give_the_same_product(tmp_path, settings, calls):
    product = run(config(tmp_path / "one", RECIPE, **settings))
    pace = product.provenance["pace"]
    assert pace["pixels"] == 64 * 416
    assert 0 < pace["device_busy"] <= 1
    one = fused(product)
    assert {shape[0] for shape in calls} == {1}
    calls.clear()
    many = fused(run(config(tmp_path / "many", RECIPE, **settings, tiles__at_once=9)))
    assert max(shape[0] for shape in calls) > 1
    np.testing.assert_allclose(many, one, atol=1e-5)


def test_where_memory_runs_out_the_batch_is_halved_then_the_tile(tmp_path, settings, calls, monkeypatch):
    plain = fused(run(config(tmp_path / "plain", RECIPE, **settings)))
    roomy = max(shape[-2] * shape[-1] for shape in calls)
    calls.clear()
    counted = fuse.TileFuser._call

    def call(self, part):
        result = counted(self, part)
        if part.layers[0][0][:, 0].numel() >= roomy:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(fuse.TileFuser, "_call", call)
    halved = fused(run(config(tmp_path / "halved", RECIPE, **settings, tiles__at_once=2)))
    assert any(shape[0] == 2 for shape in calls)
    assert any(shape[0] == 1 and shape[-2] * shape[-1] < roomy for shape in calls)
    np.testing.assert_allclose(halved, plain, atol=1e-5)


def test_memory_that_never_suffices_is_said_after_three_halvings(tmp_path, monkeypatch):
    tried: list[int] = []

    def call(self, part):
        tried.append(part.cores[0].shape[0] * part.cores[0].shape[1])
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(fuse.TileFuser, "_call", call)
    with pytest.raises(OutOfResources, match=r"lower tiles\.core"):
        run(config(tmp_path / "out", RECIPE, **SETTINGS, method="gsa"))
    assert tried == [32 * 32, 16 * 32, 16 * 16, 8 * 16]
    assert not (tmp_path / "out").exists()
