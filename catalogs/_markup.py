"""XML metadata of products: without entities, without document types, and with a sentence for what is missing."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from catalogs.errors import InputRejected


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
    except (ParseError, ValueError) as error:
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
