"""Makes a notebook's html harmless: what may stay is listed, and all else goes.

Scripts, styles, frames and forms go with their content; of an unknown tag the text stays. No
address is loaded: images stay only as data, links stay only to be clicked. Every tag that stays
is closed here, so that an output cannot end the part of the page that it is shown in.
"""

from __future__ import annotations

import html
import re
from functools import lru_cache
from html.parser import HTMLParser

from labkit.render import mark_controls


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HTML_TAGS = _words(
    "a abbr address article aside b bdi bdo blockquote br caption center cite code col colgroup"
    " dd del details dfn div dl dt em figcaption figure font footer h1 h2 h3 h4 h5 h6 header hr i"
    " img ins kbd li main mark meter ol p pre progress q rp rt ruby s samp section small span"
    " strike strong sub summary sup table tbody td tfoot th thead time tr tt u ul var wbr"
)
_SVG_TAGS = _words(
    "svg g path rect circle ellipse line polyline polygon text tspan textpath defs symbol use"
    " marker lineargradient radialgradient stop clippath mask pattern title desc"
)
TAGS = _HTML_TAGS | _SVG_TAGS
VOID = _words("br col hr img wbr")
# Gone with all they contain.
GONE = _words(
    "script style iframe frame frameset object applet template noscript noembed noframes form"
    " select textarea button audio video canvas map math head title foreignobject animate set"
    " animatetransform animatemotion"
)

_HTML_ATTRIBUTES = _words(
    "align aria-hidden bgcolor border cellpadding cellspacing char color colspan datetime dir"
    " face headers height hidden high lang low max min nowrap open optimum role rows rowspan scope"
    " size span start type valign value width"
)
_SVG_ATTRIBUTES = _words(
    "alignment-baseline baseline-shift clip-rule cx cy d direction display dominant-baseline dx dy"
    " fill fill-opacity fill-rule font-family font-size font-style font-variant font-weight fx fy"
    " gradienttransform gradientunits clippathunits markerheight markerunits markerwidth offset"
    " opacity orient patterntransform patternunits points preserveaspectratio r refx refy rotate"
    " rx ry stop-color stop-opacity stroke stroke-dasharray stroke-dashoffset stroke-linecap"
    " stroke-linejoin stroke-miterlimit stroke-opacity stroke-width text-anchor textlength"
    " text-decoration transform vector-effect viewbox visibility x x1 x2 y y1 y2 letter-spacing"
)
ATTRIBUTES = _HTML_ATTRIBUTES | _SVG_ATTRIBUTES
# These are read by people, and may say anything.
_WORDS = _words("abbr alt aria-label title")
# These name something else in the same picture: url(#arrow).
_POINTERS = _words("clip-path fill filter marker-end marker-mid marker-start mask stroke")

_DATA_IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=\s]+\Z")
_LINK = re.compile(r"(https?://|mailto:)[^\s]+\Z", re.IGNORECASE)
_POINTER = re.compile(r"""url\(\s*['"]?#([\w:.-]+)['"]?\s*\)\Z""")
_ID = re.compile(r"[\w:.-]+\Z")
# In CSS: whatever loads, runs, escapes or leaves its box.
_BAD_STYLE = re.compile(
    r"url\s*\(|image-set|image\s*\(|src\s*\(|expression|@|\\|//|/\*|behavior|binding|"
    r"\bposition\s*:|\bz-index\s*:|\banimation|\bcontent\s*:",
    re.IGNORECASE,
)


def clean_html(text: str, prefix: str) -> str:
    """The html of an output without what runs, loads or reaches out of its place.

    ``prefix`` goes before every id, so that two pictures' ids do not meet on one page.
    """
    cleaner = _Cleaner(prefix)
    cleaner.feed(mark_controls(text))
    cleaner.close()
    return cleaner.result()


class _Cleaner(HTMLParser):
    def __init__(self, prefix: str) -> None:
        super().__init__(convert_charrefs=True)
        self._prefix = prefix
        self._parts: list[str] = []
        self._open: list[str] = []
        self._gone: list[str] = []

    def result(self) -> str:
        closing = "".join(f"</{tag}>" for tag in reversed(self._open))
        return "".join(self._parts) + closing

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._gone:
            if tag == self._gone[-1]:
                self._gone.append(tag)
        elif tag in GONE and not (tag == "title" and "svg" in self._open):
            self._gone.append(tag)
        elif tag in TAGS:
            self._parts.append(self._start(tag, attrs))
            if tag not in VOID:
                self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # In html the slash of <div/> means nothing; in svg it closes.
        self.handle_starttag(tag, attrs)
        if tag in _SVG_TAGS or tag in GONE:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._gone:
            if tag == self._gone[-1]:
                self._gone.pop()
        elif tag in self._open:
            while True:
                last = self._open.pop()
                self._parts.append(f"</{last}>")
                if last == tag:
                    return

    def handle_data(self, data: str) -> None:
        if not self._gone:
            self._parts.append(html.escape(data, quote=False))

    def _start(self, tag: str, attributes: list[tuple[str, str | None]]) -> str:
        kept: dict[str, str] = {}
        for name, value in attributes:
            cleaned = self._clean_attribute(tag, name, value or "")
            if cleaned is not None and name not in kept:
                kept[name] = cleaned
        if tag == "img":
            if "src" not in kept:
                return "<em>[an image that is not in the notebook]</em>"
            kept.setdefault("alt", "an image without a description")
        if tag == "a":
            kept["rel"] = "noopener noreferrer"
        words = [f'{name}="{html.escape(value)}"' for name, value in kept.items()]
        return f"<{' '.join([tag, *words])}>"

    def _clean_attribute(self, tag: str, name: str, value: str) -> str | None:
        """The attribute's harmless value, or None where it goes."""
        if name in ("href", "xlink:href", "src"):
            return self._clean_address(tag, name, value.strip())
        if name == "id":
            return self._prefix + value if _ID.match(value) else None
        if name == "style":
            return clean_style(value)
        if name in _POINTERS and "(" in value:
            pointer = _POINTER.match(value.strip())
            if pointer:
                return f"url(#{self._prefix}{pointer[1]})"
        known = name in ATTRIBUTES or name in _POINTERS
        harmless = name in _WORDS or (known and not _BAD_STYLE.search(value))
        return value if harmless else None

    def _clean_address(self, tag: str, name: str, value: str) -> str | None:
        if name == "src":
            return value if tag == "img" and _DATA_IMAGE.match(value) else None
        if value.startswith("#") and _ID.match(value[1:]):
            return f"#{self._prefix}{value[1:]}"
        return value if tag == "a" and name == "href" and _LINK.match(value) else None


@lru_cache(maxsize=1024)  # a table repeats one style in every cell
def clean_style(style: str) -> str | None:
    """The declarations of a style attribute that only shape what they are on; None if none do."""
    kept = [part.strip() for part in style.split(";") if part.strip()]
    return "; ".join(part for part in kept if not _BAD_STYLE.search(part)) or None
