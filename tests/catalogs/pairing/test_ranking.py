"""Pairing: each criterion alone decides, limits refuse with counts, the user overrides, unknowns rank low."""

from __future__ import annotations

import re
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperfuse.catalogs.outline import outline
from hyperfuse.catalogs.pairing.likeness import YEAR_DAYS, season_days, sun_difference, sun_of, view_difference, view_of
from hyperfuse.catalogs.pairing.ranking import MAX_CANDIDATES, Pairing, PairingRules, pair
from hyperfuse.catalogs.scene import Conditions
from hyperfuse.catalogs.stac.clear_map import CELLS
from tests.archives import DAY, archive, scene_item

HSI = scene_item("h", "hsi")
WIDE = PairingRules(max_gap=timedelta(days=3650), min_overlap=0.0)


def ranked(*msis, rules: PairingRules = WIDE, hsi=HSI) -> Pairing:
    found = pair([*msis, hsi], rules)
    assert len(found) == 1
    return found[0]


def names(pairing: Pairing) -> list[str]:
    return [candidate.msi.id for candidate in pairing.candidates]


def under(**conditions) -> Conditions:
    """The conditions of the planted scenes, some replaced."""
    planted = {"cloud_cover": 0.0, "sun_elevation_deg": 60.0, "sun_azimuth_deg": 150.0, "off_nadir_deg": 3.0}
    return Conditions(**planted | conditions)


def test_a_twin_is_perfect():
    best = ranked(scene_item("twin", "msi")).chosen
    assert best is not None
    assert best.score == pytest.approx(1)
    assert best.overlap == pytest.approx(1)
    assert (best.gap, best.cloud) == (timedelta(0), 0)
    assert best.sun_difference == pytest.approx(0, abs=1e-5)
    assert best.reasons == (
        "overlap 100%",
        "0 min apart",
        "0% clouded or masked",
        "sun 0 deg",
        "view 0 deg",
        "season 0 d",
    )


@pytest.mark.parametrize(
    ("worse", "criterion"),
    [
        ({"west": 10.2}, "overlap"),
        ({"time": DAY + timedelta(days=4)}, "gap"),
        ({"conditions": under(cloud_cover=0.4)}, "cloud"),
        ({"conditions": under(sun_elevation_deg=30.0)}, "sun"),
        ({"conditions": under(off_nadir_deg=20.0)}, "view"),
        ({"conditions": under(sun_elevation_deg=None)}, "sun"),
        ({"time": None}, "gap"),
    ],
)
def test_each_criterion_decides_alone(worse, criterion):
    twin, other = scene_item("b-twin", "msi"), scene_item("a-other", "msi", **worse)
    pairing = ranked(twin, other)
    assert names(pairing) == ["b-twin", "a-other"]
    # With no weight on what they differ in, both are equal and the identifier decides.
    weights = {name: 1.0 for name in ("overlap", "gap", "cloud", "sun", "view", "season") if name != criterion}
    if criterion == "gap":
        weights.pop("season")
    pairing = ranked(twin, other, rules=PairingRules(max_gap=WIDE.max_gap, weights=weights))
    assert names(pairing) == ["a-other", "b-twin"]
    assert pairing.candidates[0].score == pytest.approx(pairing.candidates[1].score)


def test_scores_by_hand():
    # Half of it, ten days later, 36 % clouded; all else alike but for the season of ten days.
    half = scene_item("m", "msi", west=10.2, time=DAY + timedelta(days=10), conditions=under(cloud_cover=0.36))
    season = (1 + np.cos(2 * np.pi * 10 / YEAR_DAYS)) / 2
    expected = (0.5**2 * 0.5 * 0.64 * season**0.5) ** (1 / 5.5)
    best = ranked(half).chosen
    assert best is not None
    assert best.score == pytest.approx(expected, rel=1e-6)
    assert best.season_difference == pytest.approx(10)


def test_the_same_season_of_another_year_is_better_than_the_opposite_one_of_this():
    winter = scene_item("winter", "msi", time=DAY + timedelta(days=183))
    next_summer = scene_item("summer", "msi", time=DAY + timedelta(days=365))
    assert names(ranked(winter, next_summer)) == ["summer", "winter"]


def test_cloud_counts_where_the_hsi_lies():
    """An MSI with 10 % of cloud, all of it over the HSI, against one with 40 % elsewhere."""
    half = CELLS // 2
    over = ["f" * CELLS] * half + ["0" * half + "f" * half] * half
    elsewhere = ["0" * CELLS] * half + ["f" * CELLS] * half
    here, there = (
        scene_item(name, "msi", width=0.8, clear=tuple(rows), conditions=under(cloud_cover=cover))
        for name, rows, cover in (("here", over, 0.1), ("there", elsewhere, 0.4))
    )
    pairing = ranked(here, there)
    assert names(pairing) == ["there"]
    assert pairing.chosen is not None
    assert pairing.chosen.cloud == 0
    # A map without clouds of a scene that counts them: nobody looked for clouds.
    blind = scene_item("blind", "msi", width=0.8, clear=("f" * CELLS,) * CELLS, conditions=under(cloud_cover=0.3))
    best = ranked(blind).chosen
    assert best is not None
    assert best.cloud == 0.3
    assert (
        ranked(here).reason
        == "no partner: of 1 MSI scenes that meet it, 1 are clouded or masked to more than 50% there"
    )


def test_none_fits_and_why():
    far = scene_item("far", "msi", west=80)
    assert ranked(far).reason == "no partner: none of 1 MSI scenes meets it"
    assert ranked().reason == "no partner: none of 0 MSI scenes meets it"
    rules = PairingRules(max_gap=timedelta(days=5), min_overlap=0.5, max_cloud=0.2)
    several = [
        scene_item("coarse", "msi", gsd_m=30.0),
        scene_item("fine", "msi", gsd_m=0.5),
        scene_item("late", "msi", time=DAY + timedelta(days=6)),
        scene_item("corner", "msi", west=10.3, south=47.3),
        scene_item("cloudy", "msi", conditions=under(cloud_cover=0.3)),
    ]
    assert ranked(*several, rules=rules).reason == (
        "no partner: of 5 MSI scenes that meet it, 2 are not 2 to 20 times sharper, 1 lie more than 5 d apart, "
        "1 cover less than 50% of it, 1 are clouded or masked to more than 20% there"
    )
    dark = scene_item("h", "hsi", conditions=under(cloud_cover=0.9))
    assert ranked(scene_item("m", "msi"), hsi=dark).reason == (
        "no partner: it is itself clouded or masked to 90%, above the 50% allowed"
    )


def test_what_only_touches_is_no_partner():
    assert ranked(scene_item("beside", "msi", west=10.4)).chosen is None


def test_the_user_overrides():
    good, bad = scene_item("good", "msi"), scene_item("bad", "msi", west=10.3, time=DAY + timedelta(days=300))
    chosen = ranked(good, bad, rules=PairingRules(overrides={"h": "bad"}))
    assert chosen.chosen is not None
    assert (chosen.chosen.msi.id, chosen.chosen.overlap) == ("bad", pytest.approx(0.25))
    assert chosen.reason.startswith("bad was chosen by the user: overlap 25%, 300 d apart")
    for other, why in {"": "wants none", "absent": "no MSI scene", "h": "no MSI scene", "far": "does not meet"}.items():
        refused = ranked(good, scene_item("far", "msi", west=80), rules=PairingRules(overrides={"h": other}))
        assert refused.chosen is None
        assert why in refused.reason


def test_an_override_of_no_scene_is_told(caplog):
    ranked(scene_item("good", "msi"), rules=PairingRules(overrides={"gone": "good"}))
    assert "a partner is chosen for gone, which is no HSI scene of the catalogue" in caplog.text


def test_neighboring_tiles_of_one_acquisition_are_told():
    east, west = scene_item("east", "msi", west=10.15), scene_item("west", "msi", west=9.9)
    other = scene_item("other", "msi", west=9.9, time=DAY + timedelta(days=1))
    reason = ranked(east, west, other).reason
    assert re.search(r"; with east of the same acquisition 100% would be covered: fuse with each and mosaic", reason)
    assert "same acquisition" not in ranked(west, other).reason


def test_across_the_date_line():
    hsi = scene_item("h", "hsi", west=179.8, south=-17)
    msi = scene_item("m", "msi", footprint=outline([-180.5, -179, -179, -180.5], [-18, -18, -16, -16]))
    best = ranked(msi, hsi=hsi).chosen
    assert best is not None
    assert best.overlap == pytest.approx(1)


@pytest.mark.parametrize("south", [0, 70])
def test_overlap_is_a_share_of_ground(south):
    # The southern half of a footprint of 20 degrees is larger than its northern half.
    hsi = scene_item("h", "hsi", south=south, width=20)
    msi = scene_item("m", "msi", footprint=outline([10, 30, 30, 10], [south, south, south + 10, south + 10]))
    best = ranked(msi, hsi=hsi).chosen
    low, middle, high = np.sin(np.radians([south, south + 10, south + 20]))
    assert best is not None
    assert best.overlap == pytest.approx((middle - low) / (high - low), rel=1e-9)


def test_angles_by_hand():
    noon = sun_of(Conditions(sun_elevation_deg=60, sun_azimuth_deg=180))
    east = sun_of(Conditions(sun_elevation_deg=0, sun_azimuth_deg=90))
    assert sun_difference(np.array([noon, east]), noon) == pytest.approx([0, 90], abs=1e-5)
    views = np.array([view_of(Conditions(off_nadir_deg=10, view_azimuth_deg=a)) for a in (90, 270, None)])
    against = view_of(Conditions(off_nadir_deg=10, view_azimuth_deg=90))
    assert view_difference(views, against) == pytest.approx([0, 20, 0], abs=1e-5)
    assert np.isnan(view_difference(views, view_of(Conditions()))).all()
    day = 86400.0
    assert season_days(np.array([0, 100, 300, 365.2425 * 3]) * day, 0.0) == pytest.approx(
        [0, 100, YEAR_DAYS - 300, 0], abs=1e-6
    )


@pytest.mark.parametrize(
    "wrong",
    [{"min_overlap": 1.5}, {"max_cloud": -0.1}, {"max_gap": timedelta(days=-1)}, {"weights": {"color": 1.0}},
     {"weights": {"overlap": -1.0}}, {"weights": {"overlap": 0.0}}, {"weights": {}}],
)  # fmt: skip
def test_rules_that_mean_nothing(wrong):
    with pytest.raises(ValueError, match=r"expected|no criterion"):
        PairingRules(**wrong)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16))
def test_the_order_of_the_items_does_not_matter(seed):
    items = list(archive(60, seed=seed))
    shuffled = [items[i] for i in np.random.default_rng(seed).permutation(len(items))]
    plain, other = (pair(some, WIDE) for some in (items, shuffled))
    assert [(p.hsi.id, names(p), p.reason) for p in plain] == [(p.hsi.id, names(p), p.reason) for p in other]
    for pairing in plain:
        scores = [candidate.score for candidate in pairing.candidates]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) <= MAX_CANDIDATES
        assert all(0 <= score <= 1 for score in scores)


def test_an_archive_is_paired_with_few_looks():
    """The index finds who meets: comparing all with all would intersect 250,000 footprints."""
    import shapely

    counted = []
    plain = shapely.intersection

    def intersection(a, b):
        counted.append(np.size(a))
        return plain(a, b)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hyperfuse.catalogs.pairing.ranking.shapely.intersection", intersection)
        pairings = pair(archive(1000), PairingRules())
    assert len(pairings) == 500
    assert sum(p.chosen is not None for p in pairings) > 100
    assert all((p.chosen is None) == p.reason.startswith("no partner") for p in pairings)
    assert sum(counted) < 10_000
