"""How samples are stored: nodata and range of int16 products."""

from __future__ import annotations

NODATA = -32768
"""Stored value of a sample that is not valid, int16 products."""


INT16_RANGE = (-32767, 32767)
"""Stored values of valid samples."""
