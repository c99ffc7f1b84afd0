"""The README's deployment, word for word: a real server, a process work pool, a worker, `prefect deployment run`."""

from __future__ import annotations

import json

import pytest

from pipeline.publish import verify
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
    bad = settings | {"network": "nope", "output": str(tmp_path / "other")}
    refused = prefect("deployment", "run", "fuse-scene/fuse-scene", "--param", f"config={json.dumps(bad)}", "--watch")
    assert refused.returncode != 0
    assert not (tmp_path / "other").exists()
