"""Reads what the C library, shells, make and git print in other languages in English."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

MESSAGES = Path(__file__).parent / "catalogs" / "messages.tsv"


class Translation(NamedTuple):
    """What a program prints in English, and where in a line the same in other languages is read.

    ``place``: "anywhere"; "system", an error of a system call, anywhere; "end", another one at the
    end of a line or of a part of it, after a colon or a bracket; "start" of a line; "signal":
    alone in a line, or after the number of the process that it ended; "name": after the name of a
    command, in whatever quotes, which takes those that the English text has around ``NAME``.
    """

    english: str
    place: str


def read_messages(path: Path = MESSAGES) -> dict[str, Translation]:
    """The translations of messages.tsv, by their texts in lower case."""
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return {
        text.lower(): Translation(english, place)
        for english, place, *texts in rows
        for text in texts
    }


TRANSLATIONS = read_messages()


def _list_english(place: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(e.english for e in TRANSLATIONS.values() if e.place == place))


# What the C library says of a system call that failed, in English; the second ones are words that
# a sentence may have, too.
SYSTEM_ERRORS, OTHER_SYSTEM_ERRORS = _list_english("system"), _list_english("end")


def _pick_letter(text: str) -> str:
    """A letter of the text that few other texts have; "" if all are in ASCII."""
    return max((letter for letter in text if letter > "\x7f" and letter.isalpha()), default="")


def _pick_word(text: str) -> str:
    """A word of the text that stands between blanks wherever the text does; else the last one."""
    words = text.split()
    return max(words[1:-1], key=len, default=words[-1] if text[-1] in " .)" else words[0])


# The messages by such a letter, those in ASCII by a word: a text without it has none of these.
_BY_LETTER: dict[str, list[str]] = {}
_BY_WORD: dict[str, list[str]] = {}
for _message in TRANSLATIONS:
    if _letter := _pick_letter(_message):
        _BY_LETTER.setdefault(_letter, []).append(_message)
    else:
        _BY_WORD.setdefault(_pick_word(_message), []).append(_message)


def find_translated(text: str) -> tuple[str, ...]:
    """The translated messages in a text in lower case, the longest first."""
    near = [_BY_WORD[word] for word in _BY_WORD.keys() & set(text.replace("(", " (").split())]
    if not text.isascii():
        near += [each for letter, each in _BY_LETTER.items() if letter in text]
    found = [each for messages in near for each in messages if each in text]
    return tuple(sorted(found, key=lambda each: (-len(each), each)))


# A colon with the blank that French has before it, or in its Chinese form.
_COLON = r"(?P<colon>[\x20\xa0]:[\x20\xa0]?|\uff1a\x20?)?"
_FORMS = {
    "anywhere": rf"{_COLON}TEXT",
    "system": rf"{_COLON}TEXT",
    "start": r"(?<![^\n])TEXT",
    "name": r"\s{0,2}TEXT",
    "end": r"(?:(?P<colon>[\x20\xa0]:[\x20\xa0]?|\uff1a\x20?)|(?<![^\n])|(?<=:\x20)|(?<=[:(\[\"']))"
    r"TEXT(?=\s{0,4}(?:$|[.\u3002),;:\]\"'\uff09]|\x20\())",
    # Its line may have a prefix that ends with a sign.
    "signal": r"(?:(?<![^\n])|(?<=[\d:|\])+-]\s)|(?<=[\d+-]\s\s)|(?<=\uff1a))(?P<blanks>\x20{0,3})"
    r"TEXT(?=\.?\s{0,4}$|\s\s|\s?[(\uff08])",
}


@cache
def _compile(message: str) -> re.Pattern[str]:
    form = _FORMS[TRANSLATIONS[message].place].replace("TEXT", re.escape(message))
    return re.compile(form, re.IGNORECASE | re.MULTILINE)


# How bash names the line of a script, in its catalogs.
_LINE_WORDS = (
    "Zeile|ligne|línea|riga|linha|строка|рядок|linia|řádek|regel|linje|rad|rivi|satır|γραμμή|dòng"
    "|줄"
)
_LINE = re.compile(
    rf"^(\S{{1,160}}?)[\x20\xa0]?[:,]\s{{1,2}}(?:(?:{_LINE_WORDS})\x20(\d{{1,7}})"
    r"|\u7b2c\x20(\d{1,7})\x20[\u884c\u5217]|(\d{1,7})\x20\u884c|(\d{1,7})\.\x20sor)"
    r"[\x20\xa0]?[:\uff1a]\x20?",
    re.MULTILINE,
)


def translate(text: str, messages: Iterable[str]) -> str:
    """The text with these translated messages in English, whatever their case.

    >>> translate("bash: nvidia-smi: Befehl nicht gefunden", ["befehl nicht gefunden"])
    'bash: nvidia-smi: command not found'
    """
    for message in messages:
        if TRANSLATIONS[message].place == "name":
            text = _translate_named(text, message)
            continue
        text = _compile(message).sub(partial(_put, TRANSLATIONS[message].english), text)
    return _LINE.sub(_put_line, text)


# The name of a command at the end of a text, in the quotes of any language or in none.
_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u201e\xab\xbb\u300c\u300d"
_NAMED = re.compile(
    rf"(?:[{_QUOTES}][\x20\xa0]?(?P<quoted>[^{_QUOTES}\n]{{1,160}}?)[\x20\xa0]?[{_QUOTES}]"
    rf"|(?<!\S)(?P<bare>[^\s{_QUOTES}]{{1,160}}))$"
)
LONGEST_NAME = 200


def _translate_named(text: str, message: str) -> str:
    """The text with what Windows' shells say of a name that they do not know in English."""
    before, after = TRANSLATIONS[message].english.split("NAME")
    done, parts = 0, []
    for found in _compile(message).finditer(text):
        start = max(done, text.rfind("\n", 0, found.start()) + 1, found.start() - LONGEST_NAME)
        named = _NAMED.search(text, start, found.start())
        if named:
            name = named["quoted"] or named["bare"]
            parts += [text[done : named.start()], before, name, after]
            done = found.end()
    return "".join([*parts, text[done:]])


def _put(english: str, found: re.Match[str]) -> str:
    before = found.groupdict()
    return (": " if before.get("colon") else before.get("blanks", "")) + english


def _put_line(found: re.Match[str]) -> str:
    name, *numbers = found.groups()
    return f"{name}: line {next(filter(None, numbers))}: "


def read_in_english(lines: Sequence[str]) -> list[str]:
    """The lines with the messages that are in other languages in English."""
    text = "\n".join(lines)
    found = find_translated(text.lower())
    return translate(text, found).split("\n") if found else [*lines]
