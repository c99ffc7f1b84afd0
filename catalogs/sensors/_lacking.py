"""What an image without a product lacks, and the settings that supply all of it."""

from __future__ import annotations

from hyperfuse.catalogs.errors import MetadataMissing
from hyperfuse.catalogs.formats.stored import Image
from hyperfuse.catalogs.sensors import Source

_LISTED = 16
"""Bands whose wavelengths are asked for one by one; of more, a table is."""
_TABLE = "columns center_nm, optionally fwhm_nm and good"


def refuse_lacking(image: Image, source: Source) -> None:
    """Name all that an image lacks at once, with the settings that supply it.

    Raises
    ------
    MetadataMissing
        If it has no wavelengths, CRS or georeference, and the user gives none.
    """
    n_bands = image.samples.shape[0]
    lacking, settings, todo = [], [], ""
    if source.wavelengths is None and (image.table is None or not image.table.wavelength):
        lacking.append("no wavelengths")
        settings.append(f"wavelengths={','.join(['NM'] * n_bands) if n_bands <= _LISTED else 'FILE.csv'}")
        listed = image.names is not None and len(set(image.names)) == n_bands <= _LISTED
        of_bands = f" of the bands {', '.join(image.names or ())}" if listed else ""
        named = f"NM are the centers{of_bands} in nanometers, in file order, or a table ({_TABLE})"
        todo = named if n_bands <= _LISTED else f"FILE.csv is a table of the {n_bands} bands in file order ({_TABLE})"
    if source.crs is None and image.crs is None:
        lacking.append("no CRS")
        settings.append("crs=EPSG:CODE")
    place = ""
    if image.affine is None:
        lacking.append("no georeference (no pixel size and corner; control points do not count)")
        place = "georeference it first, for example with gdalwarp or a world file"
    if not lacking:
        return
    lacks = f"{image.path}: {', '.join(lacking)} in the file of {n_bands} bands"
    raise MetadataMissing(
        told(lacks, [(one, "") for one in settings], [todo, place]),
        lacks=lacks,
        settings=tuple(settings),
        todo="; ".join(part for part in (todo, place) if part),
    )


def told(lacks: str, settings: list[tuple[str, str]], todo: list[str]) -> str:
    """One sentence: what is missing, what to add to the command, and what that means."""
    added = " ".join(f"--set {role}{one}" for one, role in settings)
    of_a_pair = (
        ", of a pair with hsi. or msi. before each name" if settings and not any(role for _, role in settings) else ""
    )
    parts = [f"add {added} to the command{of_a_pair}" if settings else "", *todo]
    return "; ".join((lacks, *(part for part in parts if part)))
