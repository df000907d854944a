"""Summaries of tests and builds that count a failure, and states in which a build or unit ended."""

from __future__ import annotations

import re

from labkit.host.packages import Fix
from labkit.known_errors.foreign import BUILD_FAILED, COUNTS
from labkit.known_errors.model import KnownError


def _keep_in_line(pattern: str) -> str:
    """The expression, whose blanks match no line's end: a wrapped count is not one line's own."""
    pattern = pattern.replace(" ", r"\x20").replace(r"\s", r"[^\S\n]")
    return re.sub(r"(?<!\[\^)\\W", r"[^\\w\\n]", pattern)


_ONE = r"[1-9]\d{0,5}"
_TESTS = r"(?:tests?|examples?|specs?|scenarios?|features?|cases|success(?:es)?|passed)"
# The forms of programs: none has another meaning, wherever in a log it stands.
_SUMMARIES = (
    # MSBuild, Keil, IAR, and what counts as they do.
    r"^(?-i:Build) (?-i:FAILED)\b",
    rf"^(?:{BUILD_FAILED})[.。]?\s*$",
    rf"(?<![\w.]){_ONE} (?:(?-i:[Ee])rror|failure)\(s\)(?=[,.;)]| occurred|\s*$)",
    # TAP, Node's reporter, Automake.
    rf"^[\#\u2139]\s(?-i:fail)\s{{1,8}}{_ONE}\s*$",
    rf"^\#\s(?-i:FAIL|ERROR|XPASS):\s{{1,8}}{_ONE}\s*$",
    # prove, and what says its result in the same words.
    r"^\W{0,8}(?:(?:test|overall|final)\s)?result: (?-i:FAIL|FAILED|FAILURE|Fail|Failed)\W{0,8}$",
    rf"^Failed {_ONE}/\d{{1,6}} (?:test|subtest)",
    # Catch2, doctest, Boost.Test, CppUnit, Meson.
    rf"^(?:\[doctest\] )?(?:test cases|assertions):\s.{{0,80}}\b{_ONE} failed(?!\sas\b)",
    r"^\[doctest\] Status: (?-i:FAILURE)",
    rf"^\*\*\*\s{_ONE} failures? (?:is|are) detected\b",
    r"^!!!(?-i:FAILURES)!!!",
    rf"^(?-i:Fail|Timeout|Unexpected Pass):\s{{3,30}}{_ONE}\s*$",
    # ExUnit, bats, XCTest, busted, Foundry, Deno, OpenJ9; those that may fail say so.
    rf"^(?:[a-z]{{1,20}}:? ){{0,3}}\d{{1,6}} {_TESTS}(?:,| /) (?:with )?"
    rf"(?:\d{{1,6}} \w{{2,12}}(?:,| /) ){{0,3}}{_ONE}"
    r" (?:failures?|failed|errors?)\b(?! as expected)",
    rf"\b\d{{1,6}} (?:tests? )?passed\s?[,;|]\s{{1,3}}(?:\d{{1,6}} \w{{2,12}}[,;|]\s{{1,3}}){{0,3}}"
    rf"{_ONE} failed\b(?! as expected)",
    r"^(?-i:FAILED) \| \d",
    rf"\b(?-i:PASSED): \d{{1,6}}\b.{{0,40}}\b(?-i:FAILED): {_ONE}\b",
    # ESLint, PHP_CodeSniffer.
    rf"^\W{{0,4}}{_ONE} problems? \({_ONE} errors?\b",
    rf"^(?-i:FOUND) {_ONE} (?-i:ERRORS?)\b",
    # Cucumber, Karma, Bazel, Dart, Julia, testthat, DejaGnu, kselftest, Playwright, RuboCop, dpkg.
    rf"^\d{{1,6}} (?:scenarios?|steps?) \({_ONE} (?:failed|errored)\b",
    rf"\bExecuted \d{{1,6}} of \d{{1,6}} .{{0,20}}\({_ONE} (?-i:FAILED)\)",
    rf"\b(?:and )?{_ONE} fails? (?:locally|remotely)\b",
    r"\bSome tests failed\.",
    rf"\b{_ONE} of \d{{1,6}} failed \(\d{{1,3}}%\)",
    rf"^\d{{1,3}}%: Checks: \d{{1,6}}, .{{0,30}}\b(?:Failures|Errors): {_ONE}",
    r"^Test Summary:\s{0,60}\|.{0,60}\s(?-i:Fail|Error)\s",
    rf"^\[ (?-i:FAIL) {_ONE} \|",
    rf"^\# of unexpected failures\s{{1,8}}{_ONE}",
    rf"^\# Totals: pass:\d{{1,6}} fail:{_ONE}\b",
    rf"^{_ONE} (?:failed|fail)\s*$",
    rf"^{_ONE} (?-i:FAILED TESTS?)\b",
    # CTest, Stack, tox, Pint, yamllint and ESLint.
    r"^Errors while running CTest",
    r"^Test suite \S{1,80}: (?-i:FAIL)\b",
    r"^\S{1,80}: (?-i:FAIL) code [1-9]",
    r"^(?-i:FAIL)\s{2,8}\.{3}",
    r"^\d{1,6}:\d{1,5}\s{2,12}(?:error|\u2716|\xd7)\s{2,12}\S",
    r", col \d{1,5}, (?-i:Error) - \S",
    r"^\S{1,200}:\d{1,6}:\d{1,5}:\s?(?-i:error) - \S",
    r"\s- (?-i:ERROR): \S.{0,200} on line \d",
    rf"^Found \d{{1,6}} errors? \(\d{{1,6}} fixed, {_ONE} remaining\)",
    # golangci-lint, which names the linter.
    r"\.go:\d{1,6}:\d{1,5}: .{1,300} \((?:errcheck|govet|staticcheck|unused|ineffassign|gosimple"
    r"|gosec|revive|gocritic|typecheck|gofmt|goimports|lll|misspell|unparam|nilerr|bodyclose"
    r"|prealloc|dupl|funlen|gocyclo|stylecheck|whitespace|nolintlint|exhaustive)\)\s*$",
    # Newman, Locust, Trivy, k6's thresholds, Playwright, Cypress.
    r"^\W{0,40}(?:iterations|requests|(?:test|prerequest)-scripts|assertions?|asserts)\s{0,8}[|\u2502]"
    rf"\s{{1,20}}\d{{1,7}}\s{{1,8}}[|\u2502]\s{{1,20}}{_ONE}\s{{1,8}}[|\u2502]",
    rf"^(?:Aggregated|Total)\s{{1,120}}\d{{1,9}}\s{{1,12}}{_ONE}\(\d{{1,3}}\.\d\d%\)",
    r"^Total: \d{1,6} \((?:[A-Z]{1,12}: \d{1,6}, ){0,5}(?-i:UNKNOWN|MEDIUM|HIGH|CRITICAL): "
    rf"{_ONE}\b",
    rf"^(?:Tests|Failures): \d{{1,6}} \((?:SUCCESSES: \d{{1,6}}, FAILURES|UNKNOWN: \d{{1,6}},"
    rf".{{0,60}}\b(?:HIGH|CRITICAL)): {_ONE}\b",
    r"^[\u2717\u2718] (?:'[^'\n]{1,60}[<>=][^'\n]{1,60}'|\{ [^{}\n]{1,60}[<>=][^{}\n]{1,60}\})",
    r"^[\u2717\u2718] [a-z_]{1,60}(?:\{[^{}\n]{0,60}\}|\s\{[^{}\n]{0,60}\})?\.{2,60}: ",
    r"^\d{1,4}\W{1,4}(?:AssertionError|AssertionFailure)\s{2,20}\S",
    # dbt, Artillery.
    rf"^(?:\d\d:\d\d:\d\d\s{{1,4}})?Completed with {_ONE} errors?,? (?:and )?\d",
    rf"\bPASS=\d{{1,6}} (?:WARN=\d{{1,6}} )?ERROR={_ONE}\b",
    rf"^(?:vusers\.failed|errors\.\w{{1,40}}):\s{{1,4}}\.{{3,120}}\s{_ONE}\s*$",
    rf"^{_ONE} errors? (?:was|were) not a part of any test\b",
    rf"^\W{{0,6}}Failing:\s{{2,20}}{_ONE}\s{{1,40}}[|\u2502]",
    rf"\bfiles? inspected, {_ONE} offenses? detected(?!, \d)",
    r"^Errors were encountered while processing:",
    r"^dpkg: error processing (?:package|archive) ",
    # CMake, systemd.
    r"\bConfiguring incomplete, errors occurred\b",
    r"\.(?:service|timer|socket|mount|scope|slice|path): Failed with result '(?!success\b)",
    r"^Dependency failed for \S",
    r"^Unit \S{1,160} (?:could not be found|not found)\.",
)
SUMMARIES = tuple(map(_keep_in_line, _SUMMARIES))
# What counts errors above zero beside warnings or another counter at zero, in the same line.
COUNTED = (
    rf"(?:\b{_ONE} (?:errors?|failure)(?:\(s\)|, \d{{1,6}} warning| (?:AND|and) \d)"
    rf"|\bERROR={_ONE}\b"
    rf"|\b{_ONE} failures? / 0 errors?\b|\b0 failures? / {_ONE} errors?\b"
    rf"|^FOUND {_ONE} ERRORS?\b|^\[ FAIL {_ONE} \|)"
)

_NAMES = (
    r"(?:errors?|failures?|failed|fails|warnings?|notes?|infos?|hints?|passed|passes|pass|skipped"
    r"|skips|total|tests?|ok|ignored|pending|success(?:es|ful)?|files?|disabled|aborted)"
)
_FAILED = r"(?:errors?|failures?|failed|fails)"
_WHOLE = (
    r"(?:tests?|checks?|builds?|evaluation|compilation|installation|deployment|validation"
    r"|verification|pipeline|assertions?)"
)
_GOOD = (
    r"(?:passed|passes|pass|passing|ok|succeeded|success(?:es|ful)?|skipped|skips?|total|tests?"
    r"|tested|runs?|assertions?|scenarios?|steps?|specs?|examples?|checks?|pending|ignored|executed"
    r"|features?|suites?|omissions?|processed|files?|items?|records?|rows?|images?|urls?|pages?"
    r"|links?|packages?|modules?|hosts?|jobs?|tasks?)"
)
_BAD = r"(?:failed|failures?|fails?|failing|errors?|errored|crashed|crashing|broken)"
_PARTS = (
    r"(?:tests?|checks?|jobs?|steps?|tasks?|targets?|suites?|stages?|builds?|hosts?|nodes?|cases?)"
)
_HEAD = r"^\W{0,8}(?:[a-z]{1,20}(?: [a-z]{1,20})?:\s)?"
_GAP = r"[,;|/]?\s{1,3}"


# What a linter counts.
_KINDS = (
    r"(?:lint(?:ing|er)?|style|formatting|spelling|security|type|typing|syntax|code|validation"
    r"|accessibility|new|potential|possible|critical|serious|blocking|high|total|unique)"
)
_ISSUES = (
    r"(?:issues?|problems?|violations?|lints?|offen[cs]es?|findings?|misspellings?|defects?"
    r"|smells?)"
)
# A number of errors above zero in a line that counts nothing else than how many did what.
_COUNTS = (
    # `Found 3 issues in 2 files`, `✖ 3 problems`, `82 files inspected, 23 lints detected`.
    rf"^\W{{0,6}}(?:found|detected|reported|total:?|summary:?) (?:a total of )?{_ONE} "
    rf"(?:{_KINDS} )?(?:{_ISSUES}|errors?)(?: \(.{{0,80}})?"
    r"(?: (?:found )?(?:in|across) .{1,80})?\W{0,3}$",
    rf"^\W{{0,6}}{_ONE} (?:{_KINDS} )?{_ISSUES}"
    r"(?: (?:were |was )?(?:found|detected|reported))?(?: (?:in|across) \d.{1,60})?[.:!]?"
    r"(?: \((?!0 errors)(?!\d{1,6} \w{0,10}warnings?\)).{1,80}\)\.?)?$",
    r"^\W{0,6}\d{1,6} files? (?:inspected|checked|scanned|linted|analy[sz]ed),? .{0,20}?"
    rf"\b{_ONE} {_ISSUES}\b(?! \(0)(?!.{{0,20}}correct)",
    rf"{_HEAD}(?:{_NAMES}[:=]\s{{0,12}}\d{{1,7}}{_GAP}){{0,6}}{_FAILED}\s?[:=]\s{{0,12}}{_ONE}"
    rf"(?:{_GAP}{_NAMES}[:=]\s{{0,12}}\d{{1,7}}){{0,6}}\W{{0,8}}$",
    rf"{_HEAD}(?:\d{{1,7}} {_NAMES}{_GAP}){{0,6}}{_ONE} {_FAILED}"
    rf"(?:{_GAP}(?:and )?\d{{1,7}} {_NAMES}){{0,6}}\W{{0,8}}$",
    # Such a number anywhere in a line that also counts what passed, or all.
    rf"^(?=.{{0,160}}?\b(?:\d{{1,7}} {_GOOD}|{_GOOD}\s?[:=]\s{{0,8}}\d|{_GOOD}\s\d))"
    r".{0,200}?(?<!expected )(?<!expected=)(?<![\w_-])"
    rf"(?:{_ONE} (?:tests? )?{_BAD}(?!\s?[:=])|{_BAD}(?:\s?[:=]\s{{0,12}}|\s{{1,12}}){_ONE})"
    r"(?![\w%.])(?! (?:as )?expected)",
    # `2 of 14 checks did not pass`.
    rf"{_HEAD}{_ONE}(?: (?:out )?of \d{{1,6}}|/\d{{1,6}})? (?:[a-z]{{1,20}} )?{_PARTS}"
    r" (?:have |were )?(?:failed|unsuccessful|did not (?:pass|succeed|complete)|not ok)"
    r"(?:\W{0,3}| \([\d.]{1,9} ?m?s\))$",
    # `Build finished with 2 errors`, `2 problems found`, `Some tests failed`.
    rf"^.{{0,80}}\b(?:completed?|finished|ended|done|exited|stopped|compiled|built)\b.{{0,40}}"
    rf"\bwith {_ONE} (?:\w{{1,20}} )?(?:errors?|failures?|problems?)\b",
    rf"^.{{0,80}}(?<![\w.]){_ONE} (?:errors?|problems?|violations?) (?:were )?"
    r"(?:found|detected)\W{0,3}$",
    rf"^\W{{0,8}}(?:[a-z]{{2,12}} > )?(?:[a-z]{{1,20}} ){{0,3}}{_WHOLE} (?:has |have )?failed"
    r"(?:[.!]|\s?:\(|\s*$)",
    rf"^\W{{0,8}}{_ONE} (?:out )?of \d{{1,6}} failed\b",
    *COUNTS,
)
COUNT = KnownError(
    "count",
    tuple(map(_keep_in_line, _COUNTS)),
    "",
    Fix(""),
    passes=True,
    # What a run measures, or gets over.
    unless=r"\b(?:epoch|step|iter\w{0,7}|loss|acc(?:uracy)?|wer|cer|rate|requests?|attempts?|retr(?:y|ies|ied)"
    r"|flaky"
    r"|insertions?|deletions?|words|tokens|packets|bytes|p\d\d|latency|samples?|fixed|resolved"
    r"|repaired|corrected|versuche?|tentativ\w{1,3}|intentos?|quote|epoche|tasa|taux|tasso|taxa)\b"
    r"|\b(?:expected|if|when|no|unless|without|should|may|might|would)\b|[%\u2030]|重试|再试行|再試行|재시도|[率율]|成功(?:率|$)",
)
# Where it is, and what says of the finding that it is only a warning.
_PLACE = r"[\w@~./\\+-]{1,200}\.\w{1,8}"
_NOT_WARNED = (
    r"(?!.{0,40}\b(?:warning|note|info|hint|remark|debug|notice|trace|suggestion|help|todo|fixme)\b)"
    r"(?!.{0,80}\b(?:can inline|inlining call|escapes? |moved to heap|leaking|covered|vectorized))"
)
# A rule that a line of a file breaks, as linters report it: flake8, pydocstyle, RuboCop, golint.
_FINDINGS = (
    rf"^{_PLACE}:\d{{1,6}}(?::\d{{1,5}})?: (?-i:\[?[A-Z]{{1,5}}\d{{2,5}}\]?)(?:[\[:]|\s)"
    rf"{_NOT_WARNED}",
    r"^(?-i:D\d{3}): \S.{1,160}$",
    rf"^{_PLACE}:\d{{1,6}} \[(?-i:[CEFW])\] \w",
    rf"^{_PLACE}:\d{{1,6}}:\d{{1,5}}: {_NOT_WARNED}[\w\"'`\[].{{0,300}}?[a-z]{{2}}.{{0,300}}$",
    rf"^{_PLACE}:\d{{1,6}}:\d{{1,5}}:(?-i:[A-Z][a-z]+ ){_NOT_WARNED}.{{1,300}}\.$",
    rf"^\[{_PLACE}:\d{{1,6}}:\d{{1,5}}\] (?-i:[A-Z][a-z]+ ){_NOT_WARNED}.{{1,300}}\.$",
    rf"^{_PLACE}\[\d{{1,6}}, \d{{1,5}}\]: \S",
)
FINDING = KnownError("finding", tuple(map(_keep_in_line, _FINDINGS)), "", Fix(""), passes=True)
# What may stand below such a count: a rule, other counts, a time.
BELOW_COUNTS = (
    r"\s*|[\W_]{1,300}|\W{3,80}[\w ]{1,60}\W{3,80}|[A-Z]{2,8}"
    r"|\W{0,8}\d[\w:.,%]{0,20}(?: [^\W\d]{1,12}){0,2}\W{0,3}"
    r"|\W{0,8}(?:[^\W\d][\w'\u2019.()-]{0,30}[\s:\uff1a=]{1,24}){1,4}\W?\d[\w:.,]{0,20}"
    r"\s?(?:[^\W\d]{1,12}\.?)?\W{0,4}"
)
LINES_BELOW_COUNTS = 10
