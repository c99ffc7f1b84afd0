"""The ablations: every variant is a valid training, and one is scored, told and taken up again as promised."""

from __future__ import annotations

import pytest

from hyperfuse.pipeline.training import TrainConfig
from tests.benchmarks.ablations import APART_PX, METHODS, VARIANTS, laid_over, pairs_of, rows, shown
from tests.pipeline.training.settings import HELD_OUT, LEARNT

BASE = {
    "network": "csakd-student",
    "scenes": [{"uri": LEARNT}],
    "held_out": [{"uri": HELD_OUT}],
    "simulation": {"ratio": 4, "hsi_snr_db": 35.0, "msi_snr_db": 40.0},
    "variations": {"pairs": 1, "ratios": [4], "msis": ["s2-4"], "least_bands": 4},
    "samples": {"patch": 8, "batch": 2},
    "rate": 1e-3,
}


def test_tables_are_merged_and_terms_replaced():
    base = {"a": 1, "samples": {"patch": 8, "turns": True}, "losses": {"pixel": 1.0}, "options": {"x": 1}}
    made = laid_over(base, {"a": 2, "samples": {"turns": False}, "losses": {"sam": 1.0}, "options": {"y": 1}})
    assert made == {"a": 2, "samples": {"patch": 8, "turns": False}, "losses": {"sam": 1.0}, "options": {"y": 1}}
    assert base["samples"] == {"patch": 8, "turns": True}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_training(name, tmp_path):
    config = TrainConfig.model_validate(laid_over(BASE, VARIANTS[name]) | {"output": tmp_path / "out"})
    others = {
        TrainConfig.model_validate(laid_over(BASE, changes) | {"output": tmp_path / "out"}).key
        for other, changes in VARIANTS.items()
        if other != name
    }
    assert config.key not in others


def test_the_hsi_is_displaced_and_nothing_else(tmp_path):
    config = TrainConfig.model_validate(BASE | {"output": tmp_path / "out"})
    (lying,), (apart,) = pairs_of(config)
    assert (lying.msi == apart.msi).all()
    assert (lying.truth == apart.truth).all()
    assert sum(move**2 for move in APART_PX) ** 0.5 == pytest.approx(0.5, abs=0.01)
    noise = 10 ** (-35 / 20) * (lying.hsi.astype(float) ** 2).mean() ** 0.5
    assert abs(lying.hsi - apart.hsi).max() > 5 * noise  # more than another draw of the noise could do


@pytest.mark.slow
def test_rows_come_one_by_one_and_a_second_run_takes_them_up(tmp_path):
    names = ["channel attention", "universal, 8 planes"]
    found = [*rows(BASE, tmp_path, names, steps=2, device="cpu")]
    assert [row.name for row in found] == [*METHODS, *names]
    assert all(row.best_step in {1, 2} and row.seconds > 0 for row in found[-2:])
    # Half a pixel off is worse for who does not find it.
    untold = found[METHODS.index("gsa-regressed")]
    assert untold.apart["psnr_db"] < untold.lying["psnr_db"] - 0.5
    again = [*rows(BASE, tmp_path, names, steps=2, device="cpu")]
    assert [row.seconds for row in again[-2:]] == [0.0, 0.0]
    assert [row.lying for row in again] == [row.lying for row in found]
    table = shown(found).splitlines()
    assert len(table) == 1 + len(found)
    assert "+0.00" in table[1 + len(METHODS)]
