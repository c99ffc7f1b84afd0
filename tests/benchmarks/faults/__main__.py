"""`make faults`: see the package."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests import ROOT
from tests.benchmarks.faults import damage, inputs, kills, machines, untrusted  # noqa: F401 (each adds its experiments)
from tests.benchmarks.faults.table import EXPERIMENTS, HEAD, Result, tried

DOCS = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- made by `make faults` -->", "<!-- end of what `make faults` made -->"


def main() -> int:
    """Do the experiments that are named, or all of them; exit code 1 if one did not end as expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", nargs="*", metavar="NUMBER", help="experiments to do; all unless given")
    parser.add_argument("--docs", action="store_true", help=f"write the table into {DOCS.relative_to(ROOT)}")
    options = parser.parse_args()
    if unknown := set(options.numbers) - set(EXPERIMENTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; choose of {', '.join(sorted(EXPERIMENTS))}")
    if options.docs and options.numbers:
        parser.error("the table in the documentation is that of all experiments")
    os.chdir(ROOT)
    results = []
    for number in options.numbers or sorted(EXPERIMENTS, key=lambda name: name[1:]):
        results.append(tried(EXPERIMENTS[number]))
        print(f"{results[-1].state:8} {results[-1].seconds:6.1f} s  {number}  {results[-1].seen}", flush=True)
    print("\n".join(["", HEAD, *(result.row for result in results)]))
    if options.docs:
        into(DOCS, results)
    return int(any(result.state == "NOT OK" for result in results))


def into(path: Path, results: list[Result]) -> None:
    """Put the table between its two marks."""
    before, _, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    ok = sum(result.state == "ok" for result in results)
    rows = "\n".join([HEAD, *(result.row for result in results)])
    summary = f"{len(results)} experiments, {ok} ended as expected."
    path.write_text(f"{before}{_BEGIN}\n{summary}\n\n{rows}\n{_END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
