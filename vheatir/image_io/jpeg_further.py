"""Further images in a JPEG, such as previews and gain maps: where they are, and XMP that no longer speaks of them.

Sources: the Multi-Picture Format, CIPA DC-007; Ultra HDR's container, whose XMP lists what follows the first image.
"""

import re
import struct
from xml.dom import minidom
from xml.parsers.expat import ExpatError

from vheatir.image_io.tiff_exif import first_ifd

_ENTRIES = 0xB002  # of the index: 16 bytes for each image
_ENTRY = 16
_GAIN_MAPS = ("http://ns.adobe.com/hdr-gain-map/1.0/", "http://ns.apple.com/HDRGainMap/1.0/")
_GAIN_MAPS += ("http://ns.apple.com/pixeldatainfo/1.0/",)
_CONTAINERS = ("http://ns.google.com/photos/1.0/container/", "http://ns.google.com/photos/dd/1.0/container/")
_DESCRIBES = re.compile("|".join(map(re.escape, (*_GAIN_MAPS, *_CONTAINERS))).encode())
_GAIN_MAP = re.compile(rb"hdr-gain-map/1\.0/|HDRGainMap/1\.0/|pixeldatainfo/1\.0/")
_DEFINES_ENTITIES = re.compile(rb"<!(?:DOCTYPE|ENTITY)")
_FIRST = "Primary"


def images_of(index: bytes, start: int) -> list[tuple[int, int]]:
    """Begin and end in the file of each image behind the first one, by the index of the Multi-Picture Format.

    Args:
        index: content of its segment, from the byte order on.
        start: of that content in the file, from which positions count.

    Raises:
        ValueError: the index is damaged.
    """
    order, entries = first_ifd(index)
    table = next((entry.value for entry in entries if entry.tag == _ENTRIES), b"")
    if not table or len(table) % _ENTRY:
        raise ValueError("the index of its further images is damaged")
    found = [struct.unpack_from(order + "II", table, at + 4) for at in range(0, len(table), _ENTRY)]
    return [(start + position, start + position + size) for size, position in found if position]


def names_gain_map(xmp: bytes) -> bool:
    """Whether XMP says that a gain map follows the image."""
    return _GAIN_MAP.search(xmp) is not None


def without_images(xmp: bytes, most_bytes: int) -> bytes | None:
    """XMP without what describes further images; videos that it lists stay. None where it cannot be edited.

    Args:
        xmp: a packet, from its first tag on.
        most_bytes: of the result, which may be longer than the packet.
    """
    if not _DESCRIBES.search(xmp):
        return xmp
    if _DEFINES_ENTITIES.search(xmp):  # which may expand without bounds
        return None
    try:
        edited = _edited(minidom.parseString(xmp.rstrip(b"\0")))
    except (ExpatError, ValueError, RecursionError):
        return None
    return edited if len(edited) <= most_bytes else None


def _edited(document: minidom.Document) -> bytes:
    for directory in (one for space in _CONTAINERS for one in document.getElementsByTagNameNS(space, "Directory")):
        _keep_videos(directory)
    for element in document.getElementsByTagName("*"):
        if element.namespaceURI in _GAIN_MAPS:
            _remove(element)
        for name in [*element.attributes.keys()]:
            if element.attributes[name].namespaceURI in _GAIN_MAPS:
                element.removeAttribute(name)
    return "".join(node.toxml() for node in document.childNodes).encode()


def _keep_videos(directory: minidom.Element) -> None:
    """Take images but the first one out of a list of what follows it, and the list where nothing else is left."""
    rows = [row for row in directory.getElementsByTagName("*") if row.localName == "li"]
    kept = 0
    for row in rows:
        about = _item(row)
        if about.get("Mime", "").startswith("image/") and about.get("Semantic") != _FIRST:
            _remove(row)
        else:
            kept += about.get("Semantic") != _FIRST
    if not kept:
        _remove(directory)


def _remove(element: minidom.Element) -> None:
    parent = element.parentNode
    assert parent is not None, "elements of a document have one"
    parent.removeChild(element)


def _item(row: minidom.Element) -> dict[str, str]:
    """What a row of the list says of its item, as attributes or as elements."""
    found = {}
    for element in (row, *row.getElementsByTagName("*")):
        found |= {name.rpartition(":")[2]: value for name, value in element.attributes.items()}
        first = element.firstChild
        if first is not None and first.nodeType == first.TEXT_NODE and first.data.strip():
            found[element.localName] = first.data.strip()
    return found
