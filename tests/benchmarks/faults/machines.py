"""Memory, devices and clocks: E24, E25."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.faults.commands import called, environment, forked, fuse_of, killed, require_same, tiles_of
from tests.benchmarks.faults.table import by_tests, experiment


@experiment(
    "E24",
    "no GPU where one is asked for; none where any will do; memory of 2.5 GB; a budget that is too small",
    "exit 6; CPU, recorded; exit 6 or done; exit 6 before it starts",
)
def devices(folder: Path) -> str:
    output = folder / "p"
    forked(fuse_of(output, device="cuda"), CUDA_VISIBLE_DEVICES="").require(6, "cuda")
    forked(fuse_of(output, tiles__memory_gb=0.05)).require(6, "memory")
    limited = forked(fuse_of(folder / "limited", tiles__core=512, tiles__chunk=64), memory=2_500_000_000)
    assert limited.code in {0, 6}, f"exit {limited.code}: {limited.err[-1200:]}"
    if limited.code:
        assert limited.sentence
    forked(fuse_of(output), CUDA_VISIBLE_DEVICES="").require(0)
    require_same(output)
    device = json.dumps(json.loads((output / "provenance.json").read_text()))
    assert '"cpu"' in device
    return f"exit 6; CPU in the record; limit of memory exit {limited.code}"


by_tests(
    "E24b", "one image too many for the device", "fewer at once, same samples", "pipeline/fusion/test_tile_fuser.py"
)


@experiment(
    "E25",
    "the clock ten years behind, then one day ahead, at another kill; zone of Samoa",
    "durations positive, locks hold, UTC; same samples",
)
def clocks(folder: Path) -> str:
    output = folder / "p"
    zone = {"TZ": "Pacific/Apia"}
    behind = environment("other_clock", OTHER_CLOCK_S=str(-10 * 365 * 86_400), **zone)
    killed(fuse_of(output), lambda: tiles_of(output) >= 8, env=behind)
    ahead = environment("other_clock", OTHER_CLOCK_S="86400", **zone)
    called([*fuse_of(output)], env=ahead).require(0, "resuming")
    require_same(output)
    record = json.loads((output / "provenance.json").read_text())
    times = [
        value for key, value in _leaves(record) if isinstance(value, str) and key in {"started", "ended", "created"}
    ]
    assert times
    assert all(value.endswith(("Z", "+00:00")) for value in times), times
    seconds = [
        value for key, value in _leaves(record) if key.endswith(("seconds", "_s")) and isinstance(value, int | float)
    ]
    assert all(value >= 0 for value in seconds), seconds
    forked(["verify", str(output)]).require(0)
    return f"samples equal, times in UTC ({times[0]})"


def _leaves(record: object, key: str = "") -> list[tuple[str, object]]:
    """All values of a record with their names."""
    if isinstance(record, dict):
        return [leaf for name, value in record.items() for leaf in _leaves(value, str(name))]
    if isinstance(record, list):
        return [leaf for value in record for leaf in _leaves(value, key)]
    return [(key, record)]


by_tests(
    "E25b",
    "acquisitions in the future, or years apart",
    "told",
    "catalogs/test_times.py",
    "catalogs/pairing/test_ranking.py",
)
