"""Spectral libraries in ENVI files, written sample by sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_CODES = {"i2": 2, "f4": 4, "f8": 5, "c8": 6}


def write_library(
    path: Path,
    nm: NDArray[np.floating],
    spectra: NDArray[np.floating],
    *,
    dtype: str = "<f4",
    per_nm: float = 1.0,
    **changes: str,
) -> Path:
    """An ENVI spectral library, one spectrum per line; `changes` replace entries of its header (_ stands for a space)."""
    fields = {
        "samples": str(spectra.shape[1]),
        "lines": str(len(spectra)),
        "bands": "1",
        "header offset": "0",
        "file type": "ENVI Spectral Library",
        "data type": str(_CODES[dtype[1:]]),
        "interleave": "bsq",
        "byte order": str(int(dtype[0] == ">")),
        "wavelength units": "Nanometers" if per_nm == 1.0 else "Micrometers",
        "spectra names": "{\n " + ", ".join(f"material {k}" for k in range(len(spectra))) + "}",
        "wavelength": "{\n " + ",\n ".join(repr(float(v)) for v in nm * per_nm) + "}",
    } | {key.replace("_", " "): value for key, value in changes.items()}
    path.write_bytes(b"\0" * int(fields["header offset"]) + spectra.astype(dtype).tobytes())
    entries = "".join(f"{key} = {value}\n" for key, value in fields.items())
    path.with_suffix(".hdr").write_text(f"ENVI\ndescription = {{a test = no entry}}\n{entries}")
    return path


def soils_and_leaves(n: int = 12) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wavelengths (nm) and spectra, shape (n, wavelength): bright slopes, and dark ones that rise at the red edge."""
    nm = np.arange(380.0, 2500.0, 10.0)
    rng = np.random.default_rng(0)
    slopes = 0.1 + rng.uniform(0.2, 0.5, (n, 1)) * (nm - 380) / 2000
    edge = 0.03 + rng.uniform(0.3, 0.5, (n, 1)) / (1 + np.exp(-(nm - 715) / 15)) * np.exp(-(nm - 715) / 2500)
    return nm, np.where(np.arange(n)[:, None] % 2, slopes, edge)
