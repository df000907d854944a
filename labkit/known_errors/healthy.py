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
# A number with a point, an exponent or a percent sign, and what is measured next on the line.
_MEASURED = (
    r"-?(?:\d{0,9}\.\d{1,20}(?:e[+-]?\d{1,3})?(?![.\w])|\d{1,9}e[+-]?\d{1,3}(?!\w)|\d{1,9}(?=\s?%))"
    r"(?:\s?%)?"
)
_NEXT = (
    r"\s{1,4}(?:(?:[\w@/.-]{1,30} ){0,2}[\w@/.-]{1,30}\s?[:=]\s?-?[\d.]"
    r"|(?:max|min|mean|avg|std|median|best|last|was|vs\.?) [\d.])"
)
# Errors that are measured, not made.
_MEASURE = (
    r"(?:tests?|train(?:ing)?|val(?:idation)?|eval(?:uation)?|mean|max(?:imum)?|min(?:imum)?|average"
    r"|avg|median|relative|rel|absolute|abs|squared?|residual|reconstruction|quanti[sz]ation"
    r"|rounding|prediction|approximation|generali[sz]ation|interpolation|classification|word"
    r"|character|phoneme|reprojection|position|rotation|angular|calibration|alignment|standard"
    r"|r?mse|mae|mape|l1|l2|linf|top-?\d)"
)
# A counter at zero beside one of failures that is not, before or after it, as in a summary of
# tests: "Failures: 1, Errors: 0". A lookbehind has one width, so each number of digits has its own.
_NO_COUNT_BEFORE = "".join(
    rf"(?<!(?:ures|rors|iled):\x20[1-9]{digits},{blanks})"
    for digits in ("", r"\d", r"\d\d", r"\d\d\d")
    for blanks in (r"\x20", r"\x20\x20")
)
# Trivy counts by severity in one line.
_NO_COUNT_BEFORE += "".join(
    rf"(?<!{before}:\x20[1-9]{digits},\x20{after})"
    for digits in ("", r"\d", r"\d\d", r"\d\d\d")
    for before, after in (("high", ""), ("medium", r"high:\x20\d,\x20"))
)
_NO_COUNT_AFTER = r"(?!,\x20.{0,40}?\b(?:errors|failures|failed):\x20[1-9])"
_FORMS = (
    # An object of JSON: labels, times, and values that say that nothing happened.
    rf"^\{{(?:\s?\"(?:{_LABEL}\":\s?{_TEXT}|{_TIME}\":\s?(?:{_TEXT}|[\d.]{{1,30}})"
    rf"|[\w.]{{1,60}}\":\s?{_NOTHING})\s?,?){{1,40}}\s?\}}\s?$",
    # The same in logfmt.
    rf"^(?:\s?(?:{_LABEL}=(?:{_TEXT}|[^\s\"]{{1,80}})|{_TIME}=(?:{_TEXT}|\S{{1,40}})"
    rf"|[\w.]{{1,60}}={_NOTHING})(?=\s|$)){{1,40}}\s?$",
    rf"^\W{{0,8}}(?:last[ _])?{_WORD}(?: count| total)?\W{{1,4}}{_NOTHING}{_NO_COUNT_AFTER}"
    r"(?: of \d{1,9}|\W{0,4}|[,;].{0,200})$",
    rf"\b(?:last)?(?={_WORD}){_NO_COUNT_BEFORE}{_WORD}(?:[ _](?:count|total))?"
    rf"\W{{1,4}}{_NOTHING}{_NO_COUNT_AFTER}"
    r"(?=\s*$|[,;)}\]|]| of \d|\s{1,4}\w{1,40}[=:])",
    rf"\[{_WORD}\]\W{{0,3}}{_NOTHING}\s*$",
    # What a program has measured.
    rf"^(?:[|*#>-]{{1,4}}\s{{1,8}})?(?:[\w@/().+-]{{1,60}} ){{0,4}}errors?(?: rate)?: {_MEASURED}"
    rf"(?:\s{{0,4}}(?:$|[,;|)]|\+/?-|\xb1|->|\u2192|/\s?[\d.])|\s\s|{_NEXT})",
    rf"^(?:\S{{1,160}} ){{0,4}}{_MEASURE} errors?(?: rate)?: (?:{_MEASURED}|\d{{1,9}}$)"
    r"\s{0,4}(?:\(|(?:after|at|in|over|for|on|of) (?:\d|epoch|step|iter|train|test|val|seed|fold)"
    r"|(?:px|pixels?|mm|cm|m|deg|degrees|rad|db|bits|nats|ms|s)\b|$)",
    # What is to be logged.
    rf"\blog(?:ging)?[ _-]?level\W{{0,3}}(?:(?:set )?to |is )?\W?{_WORD}\b",
)
HEALTHY = "|".join(_FORMS)
