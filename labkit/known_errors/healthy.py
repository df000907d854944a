"""Forms in which a healthy log names errors: counters at zero, metrics, empty fields, a level."""

from __future__ import annotations

_NOTHING = r"(?:0(?:\.0{1,6})?%?|none|null|nil|<nil>|no|false|n/a|\"\"|''|\[\]|\{\})"
_LABEL = (
    r"(?:level|severity|lvl|log_?level|name|metric|job|service|host|instance|logger|component|type"
    r"|status|kind|stage|queue)"
)
_TIME = r"(?:ts|time|timestamp|@timestamp|epoch|pid|tid|uptime|interval|window|seconds|elapsed)"
_WORD = r"(?:errors?|fatal|panic|critical|failed|failures?)"
_TEXT = r"\"[^\"\n]{0,80}\""
_FORMS = (
    # An object of JSON: labels, times, and values that say that nothing happened.
    rf"^\{{(?:\s?\"(?:{_LABEL}\":\s?{_TEXT}|{_TIME}\":\s?(?:{_TEXT}|[\d.]{{1,30}})"
    rf"|[\w.]{{1,60}}\":\s?{_NOTHING})\s?,?){{1,40}}\s?\}}\s?$",
    # The same in logfmt.
    rf"^(?:\s?(?:{_LABEL}=(?:{_TEXT}|[^\s\"]{{1,80}})|{_TIME}=(?:{_TEXT}|\S{{1,40}})"
    rf"|[\w.]{{1,60}}={_NOTHING})(?=\s|$)){{1,40}}\s?$",
    rf"^\W{{0,8}}(?:last[ _])?{_WORD}(?: count| total)?\W{{1,4}}{_NOTHING}"
    r"(?: of \d{1,9}|\W{0,4}|[,;].{0,200})$",
    rf"\b(?:last)?{_WORD}(?:[ _](?:count|total))?\W{{1,4}}{_NOTHING}"
    r"(?=\s*$|[,;)}\]|]| of \d|\s{1,4}\w{1,40}[=:])",
    rf"\[{_WORD}\]\W{{0,3}}{_NOTHING}\s*$",
    # What a program has measured: a number with a point, at the end or before another one.
    r"^(?:\S{1,160} )?errors?: -?\d{0,9}\.\d[\d.e+-]{0,20}%?(?:$|[,;|)]|\s\s|\s{1,4}\w{1,20}[:=])",
    # What is to be logged.
    rf"\blog(?:ging)?[ _-]?level\W{{0,3}}(?:(?:set )?to |is )?\W?{_WORD}\b",
)
HEALTHY = "|".join(_FORMS)
