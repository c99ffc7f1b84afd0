"""Catalog: scenes and fused products of an archive, as a static STAC catalogue in a folder or behind a STAC API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalogs.items import Role, SceneItem


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An item that cannot be used."""

    href: str
    """Where it is."""
    reason: str
    """One sentence."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """All of a catalogue, read once."""

    scenes: tuple[SceneItem, ...]
    """Scenes, sorted by identifier."""
    products: tuple[dict[str, Any], ...]
    """STAC items of fused products, sorted by identifier."""
    refused: tuple[Refusal, ...]
    """Items that are not used, with the reason."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalog:
    """A catalogue of scenes and products."""

    address: str
    """Folder, or URL of a STAC API."""
    roots: tuple[Path, ...]
    """Folders in which products may lie: the catalogue's own, and those that the user names."""

    @classmethod
    def open(cls, address: str | Path, *, roots: Sequence[Path] = ()) -> Catalog:
        """The catalogue at an address; a folder without one becomes an empty catalogue when something is added."""
        return cls(address=str(address), roots=tuple(roots))

    def read(self) -> Contents:
        """Everything in it; one bad item never hides the others."""
        raise NotImplementedError

    def items(self, role: Role | None = None) -> Iterator[SceneItem]:
        """Scenes, all or of one role, sorted by identifier."""
        return (scene for scene in self.read().scenes if role in (None, scene.role))

    @property
    def products(self) -> tuple[dict[str, Any], ...]:
        """STAC items of the fused products."""
        return self.read().products

    def add(self, items: Iterable[SceneItem]) -> None:
        """Add scenes, or replace those of the same identifier; each item is written in one step."""
        raise NotImplementedError

    def add_product(self, folder: Path) -> Path:
        """Add the STAC item of a published product; its `derived_from` lead to the catalogue's scenes. Gives the item's path."""
        raise NotImplementedError
