"""XML metadata of products: without entities, without document types, and with a sentence for what is missing."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from hyperfuse.catalogs.errors import InputRejected


def parse_xml(content: bytes, label: Path) -> Element:
    """Root element of an XML text.

    Raises
    ------
    InputRejected
        If it is not well formed, or declares entities or a document type.
    """
    try:
        root: Element = fromstring(content, forbid_dtd=True)
    except DefusedXmlException as error:
        raise InputRejected(
            f"{label}: declares entities or a document type, which no product does; fetch the product again"
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        raise InputRejected(f"{label}: not well-formed XML ({error}); fetch the product again") from error
    return root


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
