"""Catalog: scenes and fused products of an archive, as a static STAC catalogue in a folder or behind a STAC API.

A static catalogue has one collection per sensor and one for products:

    catalog.json
    enmap/collection.json  enmap/<scene>.json ...
    products/collection.json  products/<product>.json ...

Items are written first, each in one step, then the links to them: a reader never meets a broken link, and adding again
mends what an interrupted addition left unlinked.

Only catalogues that this module wrote are added to. One that others made, or edited, has links and members that writing it
again would lose: it is read, and nothing in its folder is ever changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hyperfuse.catalogs.addresses import carries_user, without_user
from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.formats.documents import MAX_ITEM, read_document, write_document
from hyperfuse.catalogs.locks import locked
from hyperfuse.catalogs.scene import Role
from hyperfuse.catalogs.stac.collections import (
    catalog_record,
    collection_record,
    is_own_catalog,
    is_own_collection,
)
from hyperfuse.catalogs.stac.fused_products import (
    JOB_KEY,
    PRODUCTS,
    Listed,
    ProductItem,
    is_product,
    is_product_folder,
    product_item,
    product_record,
)
from hyperfuse.catalogs.stac.items import SceneItem, from_record, is_file_name, to_record
from hyperfuse.catalogs.stac.trusted import Trust
from hyperfuse.catalogs.times import now

MAX_DOCUMENTS = 1_000_000
"""Documents of one catalogue, at most."""


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
    products: tuple[ProductItem, ...]
    """Fused products, sorted by identifier."""
    refused: tuple[Refusal, ...]
    """Items that are not used, with the reason."""
    listed: Mapping[str, Listed]
    """Where the items of the scenes stand, by the scenes' addresses."""


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """A catalogue of scenes and products."""

    address: str
    """Folder, or URL of a STAC API."""
    trust: Trust
    """Places that its addresses may lead to."""

    @classmethod
    def open(cls, address: str | Path, *, roots: Sequence[Path | str] = ()) -> Catalog:
        """The catalogue at an address.

        Parameters
        ----------
        address : str or Path
            Folder (one without a catalogue becomes one when something is added), its `catalog.json`, or the URL of a
            STAC API with what to search for, as `https://host/stac?collections=a,b&bbox=5,47,15,55&datetime=2024-05-01/..`.
        roots : sequence of Path
            Folders, besides the catalogue's own, in which products may lie.

        Raises
        ------
        UsageError
            If the address carries a user name, a password or a key, which messages and records would repeat.
        """
        text = str(address)
        if carries_user(text):
            raise UsageError(
                f"{without_user(text)}: the address carries a user name, a password or a key; leave it out, and give the login to the "
                "client's own configuration (~/.netrc)"
            )
        if "://" in text:
            return cls(address=text, trust=Trust.of(roots, hosts=[urlsplit(text).netloc]))
        folder = Path(text).parent if Path(text).name == "catalog.json" else Path(text)
        return cls(address=str(folder.resolve()), trust=Trust.of([folder, *roots]))

    @property
    def folder(self) -> Path:
        """The folder of a static catalogue.

        Raises
        ------
        UsageError
            If it is an API, to which nothing can be added.
        """
        if "://" in self.address:
            raise UsageError(
                f"{self.address}: nothing can be added through an API; name the folder of a static catalogue"
            )
        return Path(self.address)

    def takes(self, collection: str) -> bool:
        """Whether items may be added to a collection: it is of a static catalogue that this module wrote, or is none yet."""
        if "://" in self.address or is_product_folder(self.folder):
            return False
        root, place = self.folder / "catalog.json", self.folder / collection / "collection.json"
        if root.is_file() and not is_own_catalog(read_document(root)):
            return False
        return not place.is_file() or is_own_collection(collection, read_document(place))

    def read(self) -> Contents:
        """Everything in it; one bad item never hides the others.

        Raises
        ------
        InputRejected
            If the catalogue itself cannot be read.
        """
        scenes: dict[str, SceneItem] = {}
        products: dict[str, ProductItem] = {}
        refused: list[Refusal] = []
        listed: dict[str, Listed] = {}
        for href, base, found in self._documents():
            try:
                if isinstance(found, InputRejected):
                    raise found
                if is_product(found):
                    product = product_item(found, base, self.trust)
                    products.setdefault(product.id, product)
                else:
                    scene = from_record(found, base, self.trust)
                    _refuse_second(scene, scenes, href)
                    scenes[scene.id] = scene
                    listed[scene.uri] = Listed(id=scene.id, href=href)
            except InputRejected as error:
                refused.append(Refusal(href=href, reason=str(error)))
        return Contents(
            scenes=tuple(scenes[key] for key in sorted(scenes)),
            products=tuple(products[key] for key in sorted(products)),
            refused=tuple(sorted(refused, key=lambda r: r.href)),
            listed=listed,
        )

    def items(self, role: Role | None = None) -> Iterator[SceneItem]:
        """Scenes, all or of one role, sorted by identifier."""
        return (scene for scene in self.read().scenes if role in (None, scene.role))

    @property
    def products(self) -> tuple[ProductItem, ...]:
        """Fused products, sorted by identifier."""
        return self.read().products

    def known(self) -> tuple[SceneItem, ...]:
        """Scenes of a folder wherever they lie, none where there is no catalogue yet: to compare with, never to open."""
        return self._all().scenes

    def known_products(self) -> tuple[ProductItem, ...]:
        """Products of a folder, none where there is no catalogue yet."""
        return self.products if (self.folder / "catalog.json").is_file() else ()

    def add(self, items: Iterable[SceneItem]) -> None:
        """Add scenes, or replace those of the same identifier.

        Each item is written as it comes, in one step; the links to all of them at the end, even if `items` raises.

        Raises
        ------
        ValueError
            If an identifier is no file name.
        UsageError
            If the catalogue is an API, or was made by others.
        """
        written: list[dict[str, Any]] = []
        places: dict[str, Path] = {}
        try:
            for item in items:
                if not is_file_name(item.id):
                    raise ValueError(f"{item.id!r} is no name for an item: it becomes a file's")
                if item.collection not in places:
                    places[item.collection] = self._place(item.collection)
                place = places[item.collection]
                written.append(to_record(item, place, now=now()))
                write_document(place / f"{item.id}.json", written[-1])
        finally:
            self._link(written)

    def add_product(self, folder: Path, *, scenes: Contents | None = None) -> Path:
        """Add the STAC item of a published product; its `derived_from` lead to the items of its scenes.

        Parameters
        ----------
        folder : Path
            The product.
        scenes : Contents, optional
            The catalogue of the scenes; this one unless given.

        Returns
        -------
        Path
            The item.

        Raises
        ------
        InputRejected
            If the folder holds no product.
        UsageError
            If the catalogue is an API, or was made by others.
        """
        place = self._place(PRODUCTS)
        listed = (self._all() if scenes is None else scenes).listed
        record = product_record(folder.resolve(), place, listed)
        path = place / f"{record['id']}.json"
        if path.exists() and _product_of(path) not in (None, folder.resolve()):
            # Another product of that name, `product` for example: both stay.
            record["id"] = f"{record['id']}-{record['properties'][JOB_KEY][:8]}"
            path = place / f"{record['id']}.json"
        write_document(path, record)
        self._link([record])
        return path

    def _all(self) -> Contents:
        """What is in a folder wherever scenes and products lie, nothing where there is no catalogue yet."""
        if not (self.folder / "catalog.json").is_file():
            return Contents(scenes=(), products=(), refused=(), listed={})
        return replace(self, trust=Trust.of([self.folder.anchor])).read()

    def _documents(self) -> Iterator[tuple[str, str, Mapping[str, Any] | InputRejected]]:
        """Address, base and content of every item, or why there is none."""
        if "://" in self.address:
            from hyperfuse.catalogs.stac.search import api_items  # noqa: PLC0415 (an optional dependency, and only here)

            yield from api_items(self.address, self.trust)
        else:
            yield from _static(Path(self.address), self.trust)

    def _place(self, collection: str) -> Path:
        """The folder of a collection, made if there is none."""
        place = self.folder / collection
        if not self.takes(collection):
            raise UsageError(
                f"{self.folder}: its catalogue was made or edited by others, and writing it again would lose what they "
                "wrote; it is only read, so name another folder to add to"
            )
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _link(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Let collections and catalogue name what lies in their folders."""
        if not records:
            return
        with locked(self.folder, name=".lock", on_wait=lambda: None):
            for name in sorted({record["collection"] for record in records}):
                place = self.folder / name
                before = read_document(place / "collection.json") if (place / "collection.json").is_file() else None
                new = [record for record in records if record["collection"] == name]
                files = sorted(path.name for path in place.glob("*.json") if path.name != "collection.json")
                write_document(place / "collection.json", collection_record(name, before, new, files))
            there = sorted(path.parent.name for path in self.folder.glob("*/collection.json"))
            write_document(self.folder / "catalog.json", catalog_record(self.folder.name, there))


def _static(folder: Path, trust: Trust) -> Iterator[tuple[str, str, Mapping[str, Any] | InputRejected]]:
    """Items that the links of a static catalogue lead to, each once."""
    root = folder / "catalog.json"
    if not root.is_file():
        raise InputRejected(
            f"{folder}: holds no catalogue (catalog.json); make one with `hyperfuse catalog add PATH... --catalog {folder}`"
        )
    todo, seen = [(root, _links(read_document(root), root))], {str(root)}
    while todo:
        path, links = todo.pop()
        for rel, href in links:
            try:
                place = _followed(href, path, trust)
                if str(place) in seen:
                    continue
                seen.add(str(place))
                if rel == "child":
                    todo.append((place, _links(read_document(place), place)))
                else:
                    yield str(place), str(place.parent), read_document(place, limit=MAX_ITEM)
            except InputRejected as error:
                yield href, str(path.parent), error
        if len(seen) > MAX_DOCUMENTS:
            raise InputRejected(f"{folder}: has more than {MAX_DOCUMENTS} documents; divide the catalogue")


def _product_of(path: Path) -> Path | None:
    """The product that an item in a folder describes; None if it is there no more."""
    try:
        found = product_item(read_document(path), str(path.parent), Trust.of([path.anchor])).folder
    except InputRejected:
        return None
    return found if found.is_dir() else None


def _refuse_second(scene: SceneItem, scenes: Mapping[str, SceneItem], href: str) -> None:
    if scene.id in scenes:
        raise InputRejected(f"{href}: there is another item {scene.id}, expected one; rename or remove one of them")


def _followed(href: str, path: Path, trust: Trust) -> Path:
    """The file that a link in a document means."""
    place = trust.follow(href, str(path.parent))
    if not place.startswith("/"):
        raise InputRejected(f"{path}: {place} is not followed from a catalogue on disk; name the API instead")
    if Path(place).exists() and not Path(place).is_file():
        # Reading a pipe waits for ever.
        raise InputRejected(f"{path}: {place} is no file, expected a document of STAC; correct the link")
    return Path(place)


def _links(record: Mapping[str, Any], path: Path) -> list[tuple[str, str]]:
    """Relation and address of the links to items and further catalogues."""
    try:
        found = [(link["rel"], link["href"]) for link in record["links"]]
    except (LookupError, TypeError) as error:
        raise InputRejected(f"{path}: has no links of a STAC catalogue ({error}); write it again") from error
    return [(rel, str(href)) for rel, href in found if rel in ("child", "item")]
