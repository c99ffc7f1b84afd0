"""AreaConfig: everything that decides one area mosaic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hyperfuse.pipeline import formats
from hyperfuse.pipeline.config import usage_error


class AreaConfig(BaseModel):
    """Several fused products in, one area product out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    products: tuple[Path, ...] = Field(min_length=1)
    """Product folders, published with Zarr. The first gives the lattice unless a CRS is set; nothing else depends on the order."""
    output: Path
    """Product folder; must not exist, its parent must."""
    crs: str | None = None
    """CRS of the area, for example EPSG:32633; that of the first product unless given."""
    gsd: float | None = Field(default=None, gt=0)
    """Pixel size in units of the CRS, on a lattice through the CRS's origin; a product's own lattice unless given."""
    bounds: tuple[float, float, float, float] | None = None
    """Extent (left, bottom, right, top) in the CRS of the area; that of all products together unless given."""
    feather_px: int = Field(default=50, ge=1, le=2048)
    """Pixels of the area over which the weight of a product rises from its edge, or from what is invalid in it."""
    tolerance_nm: float = Field(default=1.0, ge=0)
    """Bands of two products are one band if their centers differ by no more than this."""
    chunk: int = Field(default=256, ge=16, le=4096)
    """Edge of a Zarr chunk in pixels of the area."""
    chunk_bands: int = Field(default=32, ge=1)
    """Bands per Zarr chunk."""
    memory_gb: float = Field(default=1.0, gt=0)
    """Budget of the samples (GB) that are blended at once; fewer bands are then taken at a time, the result is the same."""
    formats: tuple[str, ...] = ("zarr", "cog", "stac")
    """Formats of the area, by module name; Zarr and STAC item are always among them."""
    license: str = "other"
    """SPDX identifier, or `other`; goes to the STAC item."""

    @field_validator("formats")
    @classmethod
    def _always_zarr(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not {"zarr", "stac"} <= set(value):
            raise ValueError("an area is always published as zarr and stac; other formats may be left out")
        if unknown := sorted(set(value) - set(formats.available())):
            raise ValueError(f"there is no format {unknown[0]!r}; choose some of {', '.join(formats.available())}")
        return ("zarr", *sorted(set(value) - {"zarr", "stac"}), "stac")

    @field_validator("bounds")
    @classmethod
    def _some_extent(cls, value: tuple[float, float, float, float] | None) -> tuple[float, float, float, float] | None:
        if value is not None and not (value[0] < value[2] and value[1] < value[3]):
            raise ValueError(f"left, bottom, right, top {value} hold no area")
        return value

    def decisive(self) -> dict[str, Any]:
        """What decides the content, for the key: no place, no order of the products, no memory."""
        return self.model_dump(mode="json", exclude={"products", "output", "memory_gb"})


def area_config(**settings: Any) -> AreaConfig:
    """The settings of a command line.

    Raises
    ------
    UsageError
        If one is unknown or out of range; the message names it.
    """
    try:
        return AreaConfig.model_validate({key: value for key, value in settings.items() if value is not None})
    except ValidationError as error:
        raise usage_error(error) from error
