"""Makes the html of an output harmless, with nh3: what may stay is listed, all else goes.

Scripts, styles, frames and forms go with their content; of an unknown tag the text stays. Nothing
is loaded: images stay only as data, links only to be clicked. The style of an element may color
and shape it, but not move it out of its place.
"""

from __future__ import annotations

import re

import nh3

from labkit.render import mark_controls

# Above these, parsing takes seconds: its cost grows with the square of the open elements.
MAX_TAGS = 20_000
MAX_REPEATED = 2_000_000
# The parser opens such an element again in each block that follows, unless three alike are open.
_REOPENED = re.compile(
    r"<(?:a|b|big|code|em|font|i|nobr|s|small|strike|strong|tt|u)[\s/]", re.IGNORECASE
)


def _words(text: str) -> set[str]:
    return set(text.split())


_HTML_TAGS = _words(
    "a abbr address article aside b bdi bdo blockquote br caption center cite code col colgroup"
    " dd del details dfn div dl dt em figcaption figure font footer h1 h2 h3 h4 h5 h6 header hr i"
    " img ins kbd li main mark meter ol p pre progress q rp rt ruby s samp section small span"
    " strike strong sub summary sup table tbody td tfoot th thead time tr tt u ul var wbr"
)
_SVG_TAGS = _words(
    "svg g path rect circle ellipse line polyline polygon text tspan textPath defs symbol use"
    " marker linearGradient radialGradient stop clipPath mask pattern title desc"
)
# Removed with all they contain.
_REMOVED = _words(
    "script style iframe frame frameset object applet template noscript noembed noframes form"
    " select textarea button audio video canvas map math head foreignObject animate set"
    " animateTransform animateMotion"
)
_HTML_ATTRIBUTES = _words(
    "align alt abbr aria-hidden aria-label bgcolor border cellpadding cellspacing char color"
    " colspan datetime dir face headers height hidden high href id lang low max min nowrap open"
    " optimum role rows rowspan scope size span start src style title type valign value width"
)
_SVG_ATTRIBUTES = _words(
    "alignment-baseline baseline-shift clip-path clip-rule cx cy d direction display"
    " dominant-baseline dx dy fill fill-opacity fill-rule filter font-family font-size font-style"
    " font-variant font-weight fx fy gradientTransform gradientUnits clipPathUnits marker-end"
    " marker-mid marker-start markerHeight markerUnits markerWidth mask offset opacity orient"
    " patternTransform patternUnits points preserveAspectRatio r refX refY rotate rx ry stop-color"
    " stop-opacity stroke stroke-dasharray stroke-dashoffset stroke-linecap stroke-linejoin"
    " stroke-miterlimit stroke-opacity stroke-width text-anchor textLength text-decoration"
    " transform vector-effect viewBox visibility x x1 x2 xlink:href y y1 y2 letter-spacing"
)
# What the style of an element may set: no position, margin of the page, transform or layer.
_SIDES = ("", "-top", "-right", "-bottom", "-left")
_STYLE_PROPERTIES = {
    *(f"padding{side}" for side in _SIDES),
    *(f"margin{side}" for side in _SIDES),
    *(f"border{side}{part}" for side in _SIDES for part in ("", "-color", "-style", "-width")),
    *_words(
        "background background-color border-collapse border-radius border-spacing caption-side"
        " clear color column-count column-gap direction display empty-cells fill fill-opacity flex"
        " flex-direction flex-wrap float font font-family font-size font-style font-variant"
        " font-weight gap grid-template-columns height justify-content align-items letter-spacing"
        " line-height list-style list-style-type max-height max-width min-height min-width opacity"
        " overflow overflow-x overflow-y stroke stroke-dasharray stroke-linecap stroke-linejoin"
        " stroke-opacity stroke-width table-layout text-align text-anchor text-decoration"
        " text-indent text-overflow text-transform vertical-align visibility white-space width"
        " word-break word-wrap overflow-wrap"
    ),
}
# A value that loads something or hides it behind an escape.
_LOADS = re.compile(r"url\s*\(|image-set|image\s*\(|src\s*\(|expression|@|\\|//|/\*", re.IGNORECASE)
_NEGATIVE = re.compile(r"(?<![\w-])-\s*[\d.]")
_DATA_IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=\s]+\Z")
_LINK = re.compile(r"(https?://|mailto:)[^\s]+\Z", re.IGNORECASE)
_POINTER = re.compile(r"""url\(\s*['"]?#([\w:.-]+)['"]?\s*\)\Z""")
_ID = re.compile(r"[\w:.-]+\Z")
# Read by people, so they may say anything.
_WORDS = {"abbr", "alt", "aria-label", "title"}
# An svg of 240 x 20 pixels with the words "an image that is not in the notebook".
MISSING_IMAGE = (
    "data:image/svg+xml;base64,PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmcvMjAwMC9zdmciIHdpZHRoPSIyNDAi"
    "IGhlaWdodD0iMjAiPjx0ZXh0IHk9IjE1IiBmb250LXNpemU9IjEzIiBmaWxsPSIjODg4Ij5hbiBpbWFnZSB0aGF0IGlz"
    "IG5vdCBpbiB0aGUgbm90ZWJvb2s8L3RleHQ+PC9zdmc+"
)


def is_cheap(text: str) -> bool:
    """True where parsing the html takes less than about a second."""
    tags = text.count("<")
    return tags <= MAX_TAGS and len(_REOPENED.findall(text)) * tags <= MAX_REPEATED


def clean_html(text: str, prefix: str) -> str:
    """The html of an output without what runs, loads or leaves its place.

    ``prefix`` goes before every id, so that the ids of two outputs do not meet on one page.
    """
    return nh3.clean(
        mark_controls(text),
        tags=_HTML_TAGS | _SVG_TAGS,
        clean_content_tags=_REMOVED,
        attributes={"*": _HTML_ATTRIBUTES | _SVG_ATTRIBUTES},
        attribute_filter=lambda tag, name, value: _clean_attribute(tag, name, value, prefix),
        filter_style_properties=_STYLE_PROPERTIES,
        url_schemes={"http", "https", "mailto", "data"},
        id_prefix=prefix,
    )


def strip_tags(text: str) -> str:
    """The text of the html alone."""
    return nh3.clean(text, tags=set(), clean_content_tags={"script", "style"})


def _clean_attribute(tag: str, name: str, value: str, prefix: str) -> str | None:
    """The attribute's harmless value; None removes the attribute."""
    if name == "src":
        return value if tag == "img" and _DATA_IMAGE.match(value) else MISSING_IMAGE
    if name in ("href", "xlink:href"):
        return _clean_link(tag, value.strip(), prefix)
    if name == "id":
        return value if _ID.match(value) else None
    if name == "style":
        return clean_style(value)
    pointer = _POINTER.match(value.strip())
    if pointer:
        return f"url(#{prefix}{pointer[1]})"
    return value if name in _WORDS or not _LOADS.search(value) else None


def _clean_link(tag: str, value: str, prefix: str) -> str | None:
    if value.startswith("#") and _ID.match(value[1:]):
        return f"#{prefix}{value[1:]}"
    return value if tag == "a" and _LINK.match(value) else None


def clean_style(style: str) -> str | None:
    """The declarations whose values load and hide nothing and are not negative; None if none."""
    kept = [part.strip() for part in style.split(";") if part.strip()]
    harmless = (part for part in kept if not _LOADS.search(part) and not _NEGATIVE.search(part))
    return "; ".join(harmless) or None
