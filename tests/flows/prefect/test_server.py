"""The README's deployment, word for word: a real server, a process work pool, a worker, `prefect deployment run`."""

from __future__ import annotations

import json
import re
import time

import pytest

from hyperfuse.catalogs.errors import Busy
from hyperfuse.catalogs.locks import locked
from hyperfuse.pipeline.products.publish import verify
from tests.synthetic import SMALL

pytestmark = pytest.mark.server


def test_a_deployment_run_publishes_a_product(prefect, tmp_path):
    settings = {
        "hsi": {"uri": f"synthetic:hsi?{SMALL}"},
        "msi": {"uri": f"synthetic:msi?{SMALL}"},
        "output": str(tmp_path / "product"),
    }
    run = prefect("deployment", "run", "fuse-scene/fuse-scene", "--param", f"config={json.dumps(settings)}", "--watch")
    assert run.returncode == 0, run.stdout + run.stderr
    assert verify(tmp_path / "product").name == "product"
    bad = settings | {"method": "nope", "output": str(tmp_path / "other")}
    refused = prefect("deployment", "run", "fuse-scene/fuse-scene", "--param", f"config={json.dumps(bad)}", "--watch")
    assert refused.returncode != 0
    assert not (tmp_path / "other").exists()


def test_a_cancelled_run_stops_and_resumes(prefect, tmp_path):
    recipe = "size=1100&ratio=4&bands=40&seed=2"
    settings = {
        "hsi": {"uri": f"synthetic:hsi?{recipe}"},
        "msi": {"uri": f"synthetic:msi?{recipe}"},
        "output": str(tmp_path / "product"),
        "tiles": {"core": 128, "chunk": 128, "batch": 1},
        "publish": {"formats": ["zarr"]},
        "dask": "local",
    }
    start = ("deployment", "run", "fuse-scene/fuse-scene", "--param", f"config={json.dumps(settings)}")
    (run,) = re.findall(r"UUID: ([0-9a-f-]{36})", prefect(*start).stdout)
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob(".product.*.staging/tiles/*.json"))) < 5:
        assert time.monotonic() < deadline, prefect("flow-run", "inspect", run).stdout
        time.sleep(0.05)
    prefect("flow-run", "cancel", run)
    (staging,) = tmp_path.glob(".product.*.staging")
    cancelled = time.monotonic()
    while True:
        try:
            with locked(staging):
                break
        except Busy:
            assert time.monotonic() < cancelled + 40  # Prefect's worker asks for cancelled runs every few seconds
            time.sleep(0.1)
    assert not (tmp_path / "product").exists()
    done = len(list(staging.glob("tiles/*.json")))
    assert 5 <= done < 81
    again = prefect(*start, "--watch")
    assert again.returncode == 0, again.stdout + again.stderr
    assert verify(tmp_path / "product").provenance["tiles"]["resumed"] == done
