"""Harmed products of every reader end in a scene or a sentence; `make fuzz` tries many more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.fuzz import FILES, fuzz
from tests.contracts.test_sensors import BUILDERS


@pytest.mark.parametrize("name", sorted({**BUILDERS, **FILES}))
def test_a_harmed_product_is_opened_or_refused(tmp_path: Path, name: str) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    found = fuzz(name, {**BUILDERS, **FILES}[name], tmp_path, seeds=range(12))
    assert not [entry for entry in found if entry[2].kind not in ("opened", "refused")]
    assert any(outcome.kind == "refused" for _, _, outcome in found)
    assert all("\n" not in outcome.told for _, _, outcome in found)
    assert {path.name for path in tmp_path.iterdir()} - before == {name, f"{name}-harmed"}
