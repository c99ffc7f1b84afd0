"""Listing and pairing of a catalogue of many scenes: `make bench-catalog`.

The catalogue is written first; reading and pairing run in a process of their own, of which the kernel's count of peak
resident memory is told.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from hyperfuse.catalogs.pairing.ranking import PairingRules, pair
from hyperfuse.catalogs.stac.catalog import Catalog
from tests.archives import archive


def read_and_pair(folder: Path, max_gap: timedelta) -> None:
    started = time.monotonic()
    contents = Catalog.open(folder, roots=["/nowhere"]).read()
    listed = time.monotonic()
    pairings = pair(contents.scenes, PairingRules(max_gap=max_gap))
    paired = time.monotonic()
    chosen = sum(pairing.chosen is not None for pairing in pairings)
    print(
        f"{len(contents.scenes):>8} scenes read         {listed - started:7.1f} s   ({len(contents.refused)} refused)"
    )
    print(f"{len(pairings):>8} HSI scenes paired   {paired - listed:7.1f} s   ({chosen} with a partner)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=10_000)
    parser.add_argument("--max-gap-days", type=float, default=30.0)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read_and_pair(options.read, timedelta(days=options.max_gap_days))
        return
    with tempfile.TemporaryDirectory(prefix="hyperfuse-bench-") as folder:
        started = time.monotonic()
        Catalog.open(folder).add(archive(options.scenes))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.json"))
        print(f"{options.scenes:>8} scenes written      {time.monotonic() - started:7.1f} s   ({size / 1e6:.0f} MB)")
        again = [sys.executable, "-m", "tests.benchmarks.catalog", "--read", folder]
        with subprocess.Popen([*again, "--max-gap-days", str(options.max_gap_days)]) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        print(f"         peak memory         {usage.ru_maxrss / 1024:7.0f} MB")


if __name__ == "__main__":
    main()
