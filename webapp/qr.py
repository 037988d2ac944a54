"""A link as a QR code, where the host has segno (Debian: python3-segno)."""

from __future__ import annotations

import importlib
import site
import sys


def qr_svg(url: str) -> str | None:
    """An SVG element for an HTML page, black on white in any theme; None without the library."""
    # Programs of ours see nothing but the standard library; it stays first.
    sys.path.extend(folder for folder in site.getsitepackages() if folder not in sys.path)
    try:
        segno = importlib.import_module("segno")
    except ImportError:
        return None
    svg = segno.make_qr(url, error="m").svg_inline(border=4, omitsize=True, dark="#000", light="#fff", svgclass=None,
                                                   lineclass=None, title="QR code of the link above")
    return svg.replace("<svg ", '<svg role="img" ', 1)
