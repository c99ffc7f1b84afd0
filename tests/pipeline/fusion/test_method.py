"""One way to run a method on a window: an evaluation fuses to the sample what the pipeline publishes of the same pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyperfuse.pipeline.fusion.residual import weights_of
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.observation.simulate import SimulatedPair
from hyperfuse.pipeline.quality.trials import fuse_whole
from hyperfuse.pipeline.run import fuse_tiles, open_run, stage_pair
from tests.pipeline.fusion.test_weights import weight_file
from tests.synthetic import config

HOLES = "size=150&ratio=4&bands=12&seed=3&holes_hsi=0.01&holes_msi=0.001&east_m=13&north_m=-6"
"""150 is no multiple of the ratio, of a tile, or of what networks want."""
LONG = "height=32&width=1200&ratio=4&bands=12&seed=13&holes_hsi=0.0004&holes_msi=0.00003"
"""One hole in either image, near one end: a network looks so far around that more would leave nothing valid."""


def staged_pair(job: StagedJob) -> SimulatedPair:
    """The pair of a job as an evaluation has it; the truth is not looked at."""
    hsi, msi = (store.open_array(job.folder / "stage" / f"{role}.zarr")[...] for role in ("hsi", "msi"))
    hsi, msi = hsi[job.staged.hsi.kept], job.staged.as_fused(msi[job.staged.msi.kept])
    truth = np.zeros((len(hsi), *msi.shape[1:]), np.float32)
    return SimulatedPair(name=job.name, truth=truth, hsi=hsi, msi=msi, observed=job.spec.observed)


@pytest.mark.parametrize(
    ("network", "recipe"),
    [("gsa", HOLES), ("map_subspace", HOLES), ("universal-plain", HOLES), ("csakd-student", LONG)],
)
def test_an_evaluation_fuses_what_is_published(tmp_path: Path, network: str, recipe: str) -> None:
    """Tiles and the whole pair at once, with holes: the same to single precision wherever the product is valid."""
    settings: dict[str, object] = {"method": network, "publish__dtype": "float32", "quality__gate": "off"}
    settings |= {"tiles__core": 64, "tiles__chunk": 32, "residual": "always"}
    if network == "csakd-student":
        settings["weights"] = str(weight_file(tmp_path / "w.safetensors", network))
    with open_run(config(tmp_path / "product", recipe, **settings)) as held:
        job = stage_pair(held)
        fuse_tiles(job)
        assert job.plan.n_tiles >= 9
        product = store.open_array(job.fused)[...]
        fused = fuse_whole(network, staged_pair(job), weights=weights_of(job).get(network)).image
    (y, x), (height, width) = job.grids.lead, product.shape[1:]
    valid = np.isfinite(product)
    assert 0.5 < valid.mean() < 1.0
    np.testing.assert_allclose(fused[:, y : y + height, x : x + width][valid], product[valid], rtol=0, atol=1e-6)
