"""Independent judges of published files."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest


def assert_follows_cf(netcdf: Path, folder: Path) -> None:
    """A NetCDF file passes the CF checker of IOOS, strictly; `folder` takes its report. Skips where it is not installed."""
    report = folder / "report.txt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the checker's own dependencies
        runner = pytest.importorskip("compliance_checker.runner", reason="compliance-checker is not installed")
        runner.CheckSuite().load_all_available_checkers()
        passed, failed = runner.ComplianceChecker.run_checker(
            str(netcdf), ["cf:1.11"], 2, "strict", output_format="text", output_filename=str(report)
        )
    assert (passed, failed) == (True, False), report.read_text()
    assert "All tests passed!" in report.read_text()
