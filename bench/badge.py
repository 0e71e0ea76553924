"""A small badge as SVG: a grey label and a coloured message, for a README.  No fonts and no network are asked for."""

from __future__ import annotations

from html import escape

#: Advance widths of Verdana at 11 px, in pixels, by character; others count as the widest digit.  (Rounded; the text is
#: stretched to the width that is written down, so another font fits as well.)
_WIDTHS = {
    **dict.fromkeys("ijl|!.,:;'", 4.0), **dict.fromkeys(" ftrI-()/[]", 4.8), **dict.fromkeys("mwMW%@", 10.2),
    **dict.fromkeys("ACDGHKNOQRUVXYBEFJLPSTZ", 7.7),
}  # fmt: skip
COLOURS = {"green": "#3a8a3a", "yellow": "#a07a00", "red": "#b3372f", "grey": "#6a6a6a"}


def text_width(text: str) -> int:
    """Width of ``text`` in Verdana 11 px, in whole pixels, about."""
    return round(sum(_WIDTHS.get(c, 6.9) for c in text))


def badge(label: str, message: str, colour: str) -> str:
    """The SVG.  colour: a name out of :data:`COLOURS`."""
    left, right = text_width(label) + 12, text_width(message) + 12
    whole = f"{label}: {message}"
    texts = "".join(
        f'<text x="{x:g}" y="14" textLength="{width - 12}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
        for text, x, width in ((label, left / 2, left), (message, left + right / 2, right))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" aria-label="{escape(whole)}">'
        f"<title>{escape(whole)}</title>"
        # the id is unlike those of other badges on a page, unless they are of the same size
        f'<clipPath id="r{left + right}"><rect width="{left + right}" height="20" rx="3"/></clipPath>'
        f'<g clip-path="url(#r{left + right})"><rect width="{left}" height="20" fill="#444"/>'
        f'<rect x="{left}" width="{right}" height="20" fill="{COLOURS[colour]}"/></g>'
        f'<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,Geneva,sans-serif" font-size="11">{texts}</g>'
        "</svg>\n"
    )
