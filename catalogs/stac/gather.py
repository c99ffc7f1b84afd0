"""From products on disk into a catalogue: what is new is opened, what is known is left alone, what is bad is told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hyperfuse.catalogs.addresses import is_remote
from hyperfuse.catalogs.errors import HyperFuseError, UsageError
from hyperfuse.catalogs.scene import Role
from hyperfuse.catalogs.sensors import Source
from hyperfuse.catalogs.stac.catalog import Catalog
from hyperfuse.catalogs.stac.fused_products import is_product_folder
from hyperfuse.catalogs.stac.items import SceneItem
from hyperfuse.catalogs.stac.survey import absolute, stamp, survey

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What became of one product."""

    uri: str
    """Its address, absolute."""
    state: Literal["added", "changed", "unchanged", "known", "refused"]
    """`changed`: its files are not those that were catalogued, and its item was replaced. `known`: the same bytes are
    in the catalogue under another address."""
    id: str | None
    """Identifier of its item; None if it was refused."""
    reason: str = ""
    """One sentence where there is something to tell."""


def gather(
    catalog: Catalog,
    sources: Sequence[Source],
    *,
    role: Role | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> list[Gathered]:
    """Add scenes and fused products to a catalogue; one bad product never stops the rest.

    A product whose files have neither grown nor changed since it was catalogued is not opened.

    Parameters
    ----------
    catalog : Catalog
        In a folder.
    sources : sequence of Source
        Scenes, or folders of fused products.
    role : "hsi" or "msi", optional
        Of scenes, where sensor and number of bands do not tell it.
    progress : callable, optional
        Called with "products", how many are done, and how many there are.

    Raises
    ------
    UsageError
        If the catalogue is an API.
    InputRejected
        If what is there is no catalogue.
    """
    known = {scene.uri: scene for scene in catalog.known()}
    told: list[Gathered] = []

    def fresh() -> Iterator[SceneItem]:
        for source in map(absolute, sources):
            try:
                if is_product_folder(Path(source.uri)):
                    told.append(Gathered(uri=source.uri, state="added", id=catalog.add_product(Path(source.uri)).stem))
                else:
                    item, outcome = _looked_at(source, role, known)
                    told.append(outcome)
                    if item is not None:
                        known[item.uri] = item
                        yield item
            except HyperFuseError as error:
                told.append(Gathered(uri=source.uri, state="refused", id=None, reason=str(error)))
            except Exception as error:
                log.debug("%s", source.uri, exc_info=True)
                why = f"{source.uri}: its reader failed ({type(error).__name__}: {error}); please report this"
                told.append(Gathered(uri=source.uri, state="refused", id=None, reason=why))
            progress("products", len(told), len(sources))

    catalog.add(fresh())
    return told


def _looked_at(source: Source, role: Role | None, known: dict[str, SceneItem]) -> tuple[SceneItem | None, Gathered]:
    """The item to write, if any, and what to tell."""
    afar = is_remote(source.uri)
    place = source.uri if afar or source.uri.startswith("synthetic:") else str(Path(source.uri).resolve())
    before = known.get(place)
    if before is not None and not afar and _same(before, source, role):
        return None, Gathered(uri=source.uri, state="unchanged", id=before.id)
    item = replace(survey(source, role=role), uri=place)
    if before is not None and before.fingerprint == item.fingerprint and _same(before, source, role):
        # On a server: only its bytes, which are in the cache, tell whether it changed.
        return None, Gathered(uri=source.uri, state="unchanged", id=before.id)
    if before is not None:
        return replace(item, id=before.id), Gathered(uri=source.uri, state="changed", id=before.id)
    digest = item.fingerprint.sha256 if item.fingerprint else ""
    for other in known.values():
        if other.fingerprint is not None and other.fingerprint.sha256 == digest and other.role == item.role:
            if other.uri.startswith("synthetic:") or is_remote(other.uri) or Path(other.uri).exists():
                return None, Gathered(uri=source.uri, state="known", id=other.id, reason=f"the same as {other.uri}")
            # The product was moved: its item follows.
            del known[other.uri]
            return replace(item, id=other.id), Gathered(uri=source.uri, state="changed", id=other.id)
    if any(other.id == item.id for other in known.values()):
        item = replace(item, id=f"{item.id[:110]}-{digest[:8]}")
    return item, Gathered(uri=source.uri, state="added", id=item.id)


def _same(before: SceneItem, source: Source, role: Role | None) -> bool:
    """Whether the files and what the user says of them are those of an item."""
    if before.fingerprint is None or role not in (None, before.role):
        return False
    try:
        size, mtime_ns = stamp(source.uri)
    except UsageError:
        return False
    told = {key: value for key, value in vars(source).items() if key not in ("uri", "sensor") and value is not None}
    return (size, mtime_ns) == (before.fingerprint.size, before.fingerprint.mtime_ns) and told == dict(before.settings)
