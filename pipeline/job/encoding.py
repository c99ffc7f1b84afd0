"""How samples are stored: format and names of the arrays, nodata and range of int16 products."""

from __future__ import annotations

VARIABLE = "reflectance"
"""Name of the cube whatever it measures, so that a reader needs to know one name."""
ERRORS = "reflectance_standard_error"
"""Name of its standard errors, in products that have them."""
WORKING_FORMAT = "zarr"
"""Format in whose layout tiles are written: a product that is published in it needs no copy."""
NODATA = -32768
"""Stored value of a sample that is not valid, int16 products."""
INT16_RANGE = (-32767, 32767)
"""Stored values of valid samples."""
