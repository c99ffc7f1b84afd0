"""XML metadata of products: without entities, without document types, and with a sentence for what is missing."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from hyperfuse.catalogs.errors import InputRejected

_DEEPEST = 100


def parse_xml(content: bytes, label: Path) -> Element:
    """Root element of an XML text.

    Raises
    ------
    InputRejected
        If it is not well formed, declares entities or a document type, or nests elements deeper than any product does.
    """
    parser = DefusedXMLParser(target=_Shallow(label), forbid_dtd=True)
    try:
        parser.feed(content)
        root: Element = parser.close()
    except DefusedXmlException as error:
        raise InputRejected(
            f"{label}: declares entities or a document type, which no product does; fetch the product again"
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        raise InputRejected(f"{label}: not well-formed XML ({error}); fetch the product again") from error
    return root


class _Shallow(TreeBuilder):
    """A tree of bounded depth: to build a million elements within each other, and to forget them, takes half a minute."""

    def __init__(self, label: Path) -> None:
        super().__init__()
        self._label, self._depth = label, 0

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        """Open an element."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise InputRejected(
                f"{self._label}: nests elements more than {_DEEPEST} deep, which no product does; fetch the product again"
            )
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        """Close one."""
        self._depth -= 1
        return super().end(tag)


def text_of(root: Element, path: str, label: Path) -> str:
    """Text of the element at a path.

    Raises
    ------
    InputRejected
        If there is none.
    """
    if not (found := (root.findtext(path) or "").strip()):
        raise InputRejected(f"{label}: no {path} in it; fetch the product again")
    return found


def number_of(root: Element, path: str, label: Path) -> float:
    """Number in the element at a path.

    Raises
    ------
    InputRejected
        If there is no such element, or no finite number in it.
    """
    text = text_of(root, path, label)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputRejected(f"{label}: {path} is {text[:40]!r}, expected a number; fetch the product again")
    return number


def lonlat(point: Element, label: Path) -> tuple[float, float]:
    """Longitude and latitude (degrees) of a corner in DLR's metadata."""
    return number_of(point, "longitude", label), number_of(point, "latitude", label)
