"""Tells an error from a sentence that mentions it, and a failure from a retry that succeeded."""

from __future__ import annotations

import re

# The start of a commit's subject or of an entry in a list of changes: a hash, a bullet, a verb.
_SUBJECT = re.compile(
    r"\s*(?:[-*•]\s+|\* |commit )*[0-9a-f]{7,40} \S"
    # git abbreviates a hash to as few as four letters where core.abbrev says so.
    r"|\s*(?:[-*•]\s+)?(?:(?=[a-f]{0,5}\d)[0-9a-f]{4,6} )?(?:\w{2,12}(?:\([\w/ -]+\))?!?: )?"
    r"(?:fix|add|handle|document|avoid|prevent|improve|revert|merge|explain|clarify|mention|recover"
    r"|support|remove|work around|reword|retry|bump|resolve)(?:e?s|e?d)?\b(?! (?:failed|error))"
    # GNU's and Debian's change logs: `* file.c (name): ...`, `  * New version ...`.
    r"|\s*\* [\w./-]+\.(?:cc?|cpp|h|py|in|am|texi|exp|sh)\b|\s{2,8}\* [A-Z]|\s*(?:\* )?PR \w+/\d+",
    re.IGNORECASE,
)
# In a condition's sentence: somebody says what came of it ("when I load it, I get ...").
_REPORT = (
    r"(?:\b(?:I|we) (?:(?:\w+ ){0,2}(?:g[eo]t|see|saw|me[et]t?|encounter|fac|receiv|hit|ran|end"
    r"|run into)|keep )|\b(?:I'm|I am|we're|we are) (?:\w+ )?(?:getting|seeing|hitting|facing)"
    r"|, (?:then )?(?:it|this|that|everything|python|(?:the|my|our) \w+) (?:\w+ ){0,2}"
    r"(?:fail|crash|die|stop|throw|rais|show|print|report|giv|return|complain|end|say|said))"
)
# A condition or an example just before the text.
_CONDITION = re.compile(
    rf"(?:^|[.;(,] )[\s*>-]*(?:if|when|whenever|in case)\b(?!.{{8,100}}?{_REPORT})[^.;]{{0,100}}$"
    r"|\b(?:such as|e\.g\.|for example|known issue|see also)\b[^.:;]{0,80}$"
    r"|(?<![\w.:])(?:no|no more|without|never|instead of|not an?|do not|don't) [\"'`]?$"
    r"|\b(?:if you (?:see|get|encounter)|did(?: not|n't) (?:find|see)|never (?:saw|seen))\b"
    r"[^.;]{0,40}$"
    # What a service leaves out at its start, and goes on: containerd's optional plugins.
    r"|\blevel=(?:info|debug) msg=.{0,20}\bskip(?:ping|ped)? .{0,160}$"
    r"|(?<![\w.:])no (?:\w+ )?errors?:? $"
    r"|(?<![\w.:])no (?:gpus?|devices?|pods?|process(?:es)?|containers?|jobs?|nodes?)"
    r" (?:(?:has|have|was|were|is|are) )?$"
    r"|(?<![\w.:#/-])0 (?:pods?|errors?|batch(?:es)?|containers?|process(?:es)?|jobs?|requests?"
    r"|times?|failures?|nodes?) (?:(?:because of|due to|with|by|to) )?$"
    r"|\b(?:may|might|can|could|would) (?:fail|crash|end|stop|hang|die) (?:with|in|by)\b[^.]{0,60}$"
    r"|(?-i:\b(?:XFAIL|XPASS|SKIPPED|PASSED)\b) ?[\[(].{0,160}$",
    re.IGNORECASE,
)
# A person says just before the text that it is over.
_OVER = re.compile(
    r"(?<!not )(?<!n't )(?<!never )\b(?:(?:fix(?:ed|es)|(?:re)?solve[ds]|got rid of|worked around"
    r"|eliminated) (?:an?|the|my|our|that|this|these|those|all)"
    r"|no longer (?:gets?|sees?|ha(?:ve|s)|hits?|runs? into))\b"
    r"(?:(?!\b(?:but|now|and|then|still|by|with|after|gets?|got|it)\b)[^.;:\n]){0,60}$",
    re.IGNORECASE,
)
# A command that a person typed, with the text as its argument; a line of a program's source.
_COMMAND = re.compile(
    r"(?:^|[$#%❯>|;] ?)\s*(?:sudo )?(?:grep|egrep|rg|echo|printf|git log|git commit|awk|sed|man)\b"
    r"|(?:\bin|\b(?:el)?if|==|match=|\bassert|\blog(?:ger|ging)?\.\w+\(|\bprint\("
    r"|\bthrow new \w+\()"
    r"\s*[fr]?[\"'][^\"']{0,80}$"
    r"|^\s*(?:(?://|#:|\*(?! ERROR)|/\*|<!--) |# {2,8}\w)"
)
# What follows in a sentence about an error: `"address already in use" -> choose another port`.
_SENTENCE = re.compile(
    r".{0,40}?(?:[\"'`] {0,3}(?:->|=>|→|—|\|)"
    r"|\b(?:means|indicates|usually|happens when|can occur)\b)"
    r"|[^:]{0,30}\b(?:was|is|are|were|been) (?:fixed|resolved|solved|handled|ignored)\b"
    r"|(?!.{0,40}(?:\bnever|\bnot|n't)\b)[^:]{0,40}\b(?:(?:is|are|was|were) (?:now )?gone"
    r"|went away|disappeared|no longer (?:occurs?|happens?|appears?|comes?|shows?))\b"
    r"|\.{0,3} ?(?:\((?:fixed|resolved|closes|fixes|ignored)\b|\(#\d+\)$)"
    r"|.{0,80}\busing (?:the )?internal (?:implementation|\w+ plugin)"
    # What it is: `"CUDA out of memory" is the most common error`.
    r"|[\"'`\u201d]? {1,2}(?:is|are) (?:an?|the|one of|among) (?:\w+ ){0,4}"
    r"(?:errors?|problems?|issues?|messages?|failures?|mistakes?|topics?|questions?)\b",
    re.IGNORECASE,
)
# A text of a data set, with what a model makes of it.
_EXAMPLE_BEFORE = re.compile(
    r"\b(?:sentence|text|input|prompt|query|question|example|sample|document|title|premise"
    r"|hypothesis|review|comment|tweet)s?\d?[\"']?\s?[:=]\s?[\"'\u201c][^\"\u201c]{0,160}$",
    re.IGNORECASE,
)
_EXAMPLE_AFTER = re.compile(
    r"[^\"\u201d]{0,300}[\"'\u201d].{0,40}\b(?:label|pred(?:icted|iction)?|target|class|score|gold"
    r"|answer|category|logits|prob(?:ability)?)s?[\"']?\s?[:=]",
    re.IGNORECASE,
)


# What a check found none of: `Driver/library version mismatch: none`; a counter at zero.
_ABSENT = re.compile(
    r"s?[\"'`\u201d]?(?:: ?(?:none|not present|0|false|never|absent)\W{0,2}$"
    r"|[ _](?:retries|counts?|events?|errors?|exceptions?|kills?|failures?|total|occurrences?"
    r"|restarts?|crashes)\s?[:=]\s?(?:none|0|false|never)(?:\W{0,2}$|[,;|)\]}]|\s{1,4}\w{1,40}[:=]))",
    re.IGNORECASE,
)
# `0 CUDA out of memory errors`, not those of GPU 0.
_NONE_BEFORE = re.compile(
    r"(?:^|[,;:=(\[]\s{0,2}|\b(?:found|had|with|and|were) )0 $", re.IGNORECASE
)
_COUNTED_AFTER = re.compile(r" (?:errors|events|retries|exceptions|kills|failures|crashes)\b")
# The line of a test that passed, with the text in its name: pytest's, ctest's.
_PASSED = re.compile(
    r"^.{0,160}[\])\w] (?:PASSED|XFAIL|XPASS|SKIPPED)(?: .{0,20}\[ *\d{1,3}%\])?\s*$"
    r"|^.{0,160}\.{3,} +Passed\b"
)
# A row of a table in a document, with a text alone in a cell.
_CELL_BEFORE = re.compile(r"^\s*\|.*\|\s*[\"'`]?$")
_CELL_AFTER = re.compile(r"[\"'`]?\s*\|.*\|\s*$")
# A program announces what it does if the error comes: `oom-kill event handler registered`, `will
# retry on ...`; a query of a monitor asks for it.
_GUARD = (
    r"(?:handlers?|hooks?|polic(?:y|ies)|watchers?|monitors?|observers?|callbacks?|guards?"
    r"|listeners?|detection|protection|recovery|retry|retries|alerts?|events?|pods?)"
)
_GUARD_BEFORE = re.compile(
    r"\b(?:regist(?:er|ers|ered|ering)|install(?:s|ed|ing)|subscrib(?:e|ed|ing)|attach(?:ed|ing)"
    r"|watch(?:es|ing)?|listen(?:s|ing)?|enabl(?:es|ed|ing)|start(?:s|ed|ing))"
    r" (?:to |for |on )?(?:an? |the )?[\"'`]?$",
    re.IGNORECASE,
)
_GUARD_AFTER = re.compile(rf"[\"'`]?(?: \w{{1,12}})? {_GUARD}\b|[\"'`.,]?\s*$", re.IGNORECASE)
_GUARD_SET = re.compile(
    rf"[\"'`]?(?: \w{{1,12}})? {_GUARD}\b:? (?:(?:is|was|now) ){{0,2}}(?:registered|installed|armed"
    r"|enabled|disabled|started|ready|active|set|initialized|loaded|on\b|off\b)"
    r"|[\"'`]\}+ ?(?:[><]|==|\[\d)",
    re.IGNORECASE,
)
_WILL_GO_ON = re.compile(
    r"\b(?:retry|retries|falls? back|halves?|reduces?|dump(?:s|ed)?|stops?|restarts?) "
    r"(?:on|upon|after|when)(?: an?)? (?:the )?[\"'`]?$|\b(?:will|to) catch (?:an? )?[\"'`]?$",
    re.IGNORECASE,
)
# An exception as Python prints it: what follows its text explains the error, not a sentence.
_EXCEPTION = re.compile(r"^\W{0,8}(?:\w+\.){0,8}\w{0,40}(?:Error|Exception): [^\"'`]{0,120}$")


def is_mention(before: str, after: str, start: str = "") -> bool:
    """True if the rest of the line, before and after the text, shows that it is only mentioned.

    ``start`` is how the text itself begins, where an exception's name alone is the text.

    >>> is_mention("3f2a9c1e fix: ", " during the build")
    True
    >>> is_mention("OSError: [Errno 28] ", ": '/data/x'")
    False
    """
    near = before[-200:]
    return bool(
        _SUBJECT.match(before[:200])
        or _CONDITION.search(near)
        or _OVER.search(near)
        or _COMMAND.search(near)
        or _ABSENT.match(after)
        or (_COUNTED_AFTER.match(after) and _NONE_BEFORE.search(near))
        or _PASSED.match(after)
        or (_EXAMPLE_BEFORE.search(near) and _EXAMPLE_AFTER.match(after))
        or _WILL_GO_ON.search(near)
        or _GUARD_SET.match(after)
        or (_GUARD_BEFORE.search(near) and _GUARD_AFTER.match(after))
        or (_CELL_BEFORE.match(near) and _CELL_AFTER.match(after))
        or (_SENTENCE.match(after) and not _EXCEPTION.match((before + start)[:200]))
    )


# What stands before a line of source: the sign of a diff, IPython's arrow and number.
_MARGIN = r"(?:[+-]\s|-{0,5}>?\s{0,4}\d{1,5}\s)?\s{0,60}"
# A string that source raises, compares, adds or returns; a repr of an error has no such verb.
_IN_SOURCE = re.compile(
    r"(?:\braise [\w.]{1,60}|\bthrow (?:new )?[\w:.]{1,60}|\bre\.compile|\bwarnings\.warn"
    r"|\b(?:TORCH_\w{3,40}|AT_ERROR|C10_THROW_ERROR|CV_Error))\s?\([^\"']{0,120}[rfb]{0,2}[\"']"
    r"[\"']?[^\"']{0,200}$"
    r"|\braise [\w.]{0,60}$|\bthrow (?:new )?$|\bisinstance\([\w., (]{0,160}$"
    r"|(?:\w \+= |\breturn )\(?[rf]{0,2}[\"'][^\"']{0,200}$"
    r"|\w = \(?[rR]?[fF][\"'][^\"']{0,200}$"
    # C++: a branch of a switch, a declaration, a comment.
    r"|^\s*(?:case|using|constexpr|#define|catch|\} catch) [^\"']{0,160}$|^\s*///"
    rf"|^{_MARGIN}except [\w., (]{{0,160}}$|^{_MARGIN}(?:class|def) [\w(),:= ]{{0,160}}$"
)
_NAMES = r"[\w.]{1,80}(?: as \w{1,60})?(?:, ?[\w.]{1,80}(?: as \w{1,60})?){0,20}"
_IMPORT = re.compile(rf"{_MARGIN}(?:from [\w.]{{1,80}} )?import {_NAMES}(?:,|,? \\\\)?$")
_LITERAL = re.compile(rf"{_MARGIN}(?P<kind>[rb]?f?)[\"'].*[\"'](?P<end>\s*[,)%.]?.{{0,40}})$")
# A person's quote of an exception, as Python prints it: source has no such name in its strings.
_QUOTED_ERROR = re.compile(
    rf"{_MARGIN}\"(?:\w{{1,40}}\.){{0,5}}[A-Z]\w{{0,40}}(?:Error|Exception|Warning): "
)
# The last argument of a call in C++ or JavaScript.
_LAST_ARGUMENT = re.compile(r"\s*\"[^\"]*\"\s?\);(?:\s*\\)?$")
_NAME_IN_LIST = re.compile(rf"{_MARGIN}[\"']?[\w.]{{1,80}}[\"']?,$")


def is_source(before: str, line: str, above: str, below: str) -> bool:
    """True if the line is a program's source: it holds the text of an error, as a diff shows it.

    ``line`` holds the text with ``before`` before it, between the lines ``above`` and ``below``.

    >>> is_source('raise ValueError("', 'raise ValueError("no GPU")', "", "")
    True
    >>> is_source('Exception: ValueError("', 'Exception: ValueError("no GPU")', "", "")
    False
    """
    if _IN_SOURCE.search(before[-300:]) or any(
        form.match(line) for form in (_NAME_IN_LIST, _IMPORT, _LAST_ARGUMENT)
    ):
        return True
    literal = _LITERAL.match(line.partition("\n")[0])
    if (
        literal is None
        or _QUOTED_ERROR.match(line)
        or not re.fullmatch(rf"{_MARGIN}[rb]?f?[\"'].*", before)
    ):
        return False
    if "f" in literal["kind"]:
        return True
    # In JSON a string ends with a comma, or its list ends: strings joined without are source.
    joined = (not literal["end"] and re.match(rf"{_MARGIN}(?:[rb]?f?[\"']|\))", below)) or re.match(
        rf"{_MARGIN}[rb]?f?[\"'].*[\"']$", above
    )
    return bool(joined) or above.rstrip().endswith("(")


# A guide quotes an error: it speaks to its readers, and the quote follows.
_MEETS = r"(?:see|get|encounter|receive|hit|run into)\b[^.\n]{0,99}:\s{0,4}(?:```\w{0,12}\s{0,4})?$"
_GUIDE = re.compile(
    rf"\b(?:you|users?) (?:may|might|will|can|could) (?:\w+ )?{_MEETS}|\b(?:if|when) you {_MEETS}",
    re.IGNORECASE,
)
# A question of a FAQ; its answer, or the word before the remedy in a list of errors.
_QUESTION = re.compile(
    r"\s*(?:[#>*-]+ ){0,2}[*_]{0,2}(?:\d{1,3}[.)] )?(?:Q(?:uestion)?\d{0,3}[:.)]"
    r"|(?:What (?:does|is)|Why (?:do|does|am)|How (?:do|can|to))\b.{0,200}\?[*_]{0,2}\s*$)"
)
_HEADING = re.compile(r"\s*(?:#{1,6} |[-*>] |\*\*|__|Symptoms?\b|Problem\b|Error message\b)")
_ANSWER = re.compile(
    r"\s{0,6}(?:[-*>]+ |#{1,6} )?[*_]{0,2}"
    r"(?:A|Answer|Solution|Fix|Cause|Resolution|Workaround|Remedy)[*_]{0,2}:"
)


def is_documented(above: str, line: str, below: str) -> bool:
    """True if a guide or a FAQ quotes the error: in this line, with these lines around it.

    >>> is_documented("", "**Q: What does `CUDA out of memory` mean?**", "A: No memory is left.")
    True
    >>> is_documented("", "RuntimeError: CUDA out of memory", "A: 1")
    False
    """
    if _GUIDE.search(above.rstrip()[-300:]):
        return True
    has_answer = any(map(_ANSWER.match, below.split("\n")))
    return has_answer and bool(_QUESTION.match(line) or _HEADING.match(line))


# A person tells of an error: about themselves, or with a verb or noun just before its text.
_TOLD = re.compile(
    r"(?:^|[\s\"'(])(?:I|I'm|I've|[Mm]y|[Ww]e (?:get|got|see|saw|hit|had|have|are)|[Oo]ur)\b[ ,]"
    r"|^Subject: .{0,80}$"
    r"|\b(?:g[eo]ts?|getting|got|see|seeing|saw|shows?|showed|sa(?:ys?|id)|complain(?:s|ed)|threw"
    r"|throws|hit|hits|encounter(?:s|ed)?|(?:end|fail|crash|die)(?:s|ed|d)? with|famous|dreaded"
    r"|infamous|known as|called|the error|errors? (?:is|was|like|about|of)|error message|\ban?|the)"
    r"[:,]? {1,3}(?:Failed to [\w ]{2,40}: )?[\"'`\u2018\u201c\u00ab*]{0,3}$",
    re.MULTILINE,
)
# The sentence goes on after the error's text, up to its full stop.
_GOES_ON = re.compile(
    r"[\"'`\u2019\u201d\u00bb*)]{0,3},? (?:errors?|messages?|exceptions?|when|whenever|while|after"
    r"|but|and|so|because|which|that|since|until|appears?|occurs?|happen(?:s|ed)|came|comes|was|were|had"
    r"|has|will|would|can|could|may|might|should|issues?|problems?|in|on|is an?)\b"
    r"(?: [\w\"'`,;()/@-][\w\"'`,;()/@.-]*){2,60}[.!?]\W{0,3}$"
)
# A line of a chat: a name, and a person's sentence with the error's text in quotes.
_CHAT = re.compile(
    r"\s*[\w.-]{2,30}: .{0,160}\b(?:I|[Yy]ou|[Ww]e|[Aa]nyone|[Dd]id|[Mm]y|[Yy]our)\b"
    r".{0,160}[\"\u201c][^\"\u201c]{0,80}$"
)
_CHAT_QUOTE = re.compile(r"\s*[\w.-]{2,30}: [\"\u201c][^\"\u201c]{0,80}$")
_CHAT_GOES_ON = re.compile(r".{0,80}[\"\u201d] (?:is|was|means|comes|happens|again|too|thing)\b")
# What a line of a log begins with: a level, a time, a program's name, an exception.
_LOG_START = re.compile(
    r"[^A-Za-z]{0,40}\d\d:\d\d|\s*[\[(<{/]|\s*(?!Subject)[\w.:/\[\]-]{2,60}: |\s*\w{3,5}="
    r"|\s*E\d{4} |\W{0,8}(?:ERROR|FATAL|WARN|INFO|CRITICAL|Error|Warning)\b"
)


def is_prose(before: str, after: str) -> bool:
    """True if the line is a sentence that tells of the error, in a mail or an article.

    >>> is_prose("Since the update I get ", " when the container starts.")
    True
    >>> is_prose("docker: Error response from daemon: ", " with capabilities: [[gpu]].")
    False
    """
    if _CHAT.match(before) or (_CHAT_QUOTE.match(before) and _CHAT_GOES_ON.match(after)):
        return True
    if _LOG_START.match(before):
        return False
    if before.count("`") % 2 or "\u201c" in before[-40:]:
        return True
    reported = bool(before.strip()) and bool(_TOLD.search(before[-200:]))
    return reported or (bool(re.search(r"[a-z] ", before)) and bool(_GOES_ON.match(after)))


# Said of an error that passes: the program goes on by itself.
TRANSIENT = re.compile(
    r"(?:trying|using|choosing) (?:another|the next|a different|port \d)|falling back"
    r"|\bignor(?:ed|ing)\b|(?:succeeded|recovered) (?:after|on)"
    r"|\bretr(?:y|ied|ying)\b.{0,80}\b(?:ok|done|success\w{0,5}|succeeded)\b",
    re.IGNORECASE,
)
# A line that only warns; NCCL's own "NCCL WARN" is its word for an error.
WARNING = re.compile(r"(?<!NCCL )\bWARN(?:ING)?\b|\b\w{0,30}Warning: ")
# Within the lines up to the text: a program that says it will try again.
RETRY = re.compile(
    r"Retrying \(Retry\(total=|\bretry(?:ing)? in \d|\bwill (?:be )?retr|\bretrying\b"
    r"|\battempt \d+ ?(?:of|/) ?\d+|\btrying (?:with )?(?:an? )?(?:micro.?)?(?:batch|bs)\b"
    # A program that warns of it has caught it; NCCL's WARN is its word for an error.
    r"|(?<!NCCL )\bWARN(?:ING)?\b[^\n]{0,120}$"
    # Python's own "Caught RuntimeError in replica 0" raises the error again.
    r"|\bcaught\W{1,3}(?:an? |the )?(?:[\w.]{1,80}\W{1,3})?$",
    re.IGNORECASE,
)
_CACHE = r"(?:the |gpu |cuda |torch )?(?:cache|memory|vram)"
# After the text, on its line too: the program repeats the step with less, or leaves it out.
RETRY_BELOW = re.compile(
    r"\bretrying\b|\bretry with (?:an? |the )?(?:smaller|lower|less|fewer|half|batch|bs|\d)"
    r"|\b(?:trying|try) (?:again|with (?:a )?(?:smaller|lower|batch|tiled|fewer))"
    r"|\btrying (?:(?:micro.?)?batch|bs\b|\d)|\bbatch.size (?:is )?(?:now|set to) \d"
    r"|\b(?:reduc|lower|halv|decreas|shrink|determin|detect)(?:ing|ed)"
    r" (?:the )?(?:\w{1,12} )?(?:batch|bs\b)"
    r"|\b(?:batch|bs)(?:.size)? (?:is |was )?(?:reduced|lowered|halved|decreased)\b"
    r"|\b(?:batch|bs)(?:.size)?\W{1,3}(?:from )?\d{1,6} {0,2}(?:->|=>|\u2192|to) {0,2}\d"
    rf"|\b(?:empty|clear|free|flush|releas|purg)(?:ing|ed) {_CACHE}"
    r"|\b(?:using|switching to) (?:an? )?(?:smaller |lower )?(?:(?:micro.?)?batch|tile)"
    r"|\bcontinuing (?:with|without|after|to)\b"
    r"|\bto recover from (?:the )?(?:OOM|out.of.memory)"
    r"|\bskipping (?:this |the )?(?:batch|sample|step)|\bfalling back to\b",
    re.IGNORECASE,
)
# The words of PROGRESS, STEPS and FINAL: a line without them is not such a line.
PROGRESS_WORDS = frozenset(
    b"collecting downloading downloaded installed satisfied up unpacking fetched complete running"
    b" startup started done saved epoch finished succeeded recovered reconnected healthy exporting"
    b" pulled available retries version distribution fetch install total giving ready healthy alive"
    b" reachable 200 201 204 ok connected established accepting listening registered synced joined"
    b" loaded initialized request get built loss executed training determined completed fit 100"
    b" runtime successfully success code exit status rc written exported accuracy acc score".split()
)
# A program that ends well, where no word before says that it does not, or that only its end did.
_NOT_WELL = (
    r"(?!.{0,200}(?:\bnot\b|n't\b|\bnever\b|\bif\b|\bwhen\b|\buntil\b|\bfail|\berror"
    r"|\bclean.?up\b|\bshut.?down\b|\btear.?down\b|\b(?:exit|return)\w{0,2}.{0,9} [1-9]))"
)
_RUN = (
    r"(?:runs?|jobs?|tasks?|process(?:es)?|program|script|command|training|experiment|pipeline"
    r"|evaluation|inference|generation|benchmark|workflow)"
)
# In lower case: the step went on after a retry.
PROGRESS = re.compile(
    r"\bcollecting [\w.-]+|\bdownloading \S+\.(?:whl|tar|zip)|\bdownloaded newer image"
    r"|\bsuccessfully (?:installed|built|downloaded|connected|pulled|registered|started|synced"
    r"|joined|loaded|initialized)|requirement already satisfied"
    # What a wait for a service ends with: `until curl ...`, wait-for-it, nc, a health check.
    r"|(?<!not )(?<!image )(?<!gpu )(?<!device )\bis "
    r"(?:up|ready|healthy|alive|reachable|available|accepting"
    r"|now (?:up|ready|healthy|alive|reachable|available|accepting))\b"
    r"(?! to)(?!.{0,4}\?)"
    r"|\bhttp/[\d.]{1,3} 20\d|\b200 ok\b|\"?status\"?: ?\"(?:ok|up|ready|healthy|alive)\""
    r"|\bready (?:after|in) \d|\bconnected to \S|\bconnection to .{1,80} succeeded"
    r"|\bconnection (?:established|restored)|\bready (?:for|to accept) connections"
    r"|^[^a-z]*get:\d+ http|\bfetched [\d.,]+ [kmg]?b in|\b(?:setting up|unpacking) [\w.:+-]+ \("
    r"|\bpull complete|application startup complete|\bis running at\b|\bexporting to image"
    r"|\bnaming to \S+ done|\bsaved (?:checkpoint|model)"
    r"|\b(?:retry|attempt).{0,20}\bsucceeded"
    r"|\bretrying\b.{0,60}\b(?:ok|done)\b"
    r"|\bbatch.size.{0,12}\bsucceeded"
    r"|\bdetermined (?:the )?(?:\w{1,8} )?batch.size|\b\d+ epochs? completed in \d"
    r"|\bresults saved to \S"
    r"|\bdone training in \d|train_runtime['\": ]{1,4}\d|\bfit`? stopped: .?max_\w+"
    r"|\bprompt executed in \d|\btraining (?:finished|completed?|done)\b"
    r"|\breconnected\b|\brecovered\b|\bcontainer \S+ +(?:started|healthy)|\bdone in \d"
    rf"|^{_NOT_WELL}.{{0,200}}\b(?:finished|completed?|ended|exited|done) "
    r"(?:with )?success(?:fully)?\b"
    rf"|^{_NOT_WELL}.{{0,200}}\bsuccessfully (?:finished|completed|trained|ended|exited)\b"
    r"|\brun finished: success|\bprocess finished with exit code 0\b"
    rf"|^{_NOT_WELL}.{{0,200}}\ball (?:\w{{1,20}} )?{_RUN} (?:have )?"
    r"(?:succeeded|completed|finished)\b"
)
# In lower case: a step of a training is done, or something else that need not be the same program.
STEPS = re.compile(
    r"\bepoch \d+|\b100%\||'loss': \d|\b(?:step|iter\w*|batch)\W{0,3}\d.{0,60}\bloss\W{0,3}\d"
    r"|\b(?:step|iter\w*|batch) ?\d{1,9}\W{1,5}(?:done|ok|completed?|finished)\b"
    r"|(?:^|[\]:|>-] ?|\binfo )(?:all )?(?:done|finished|completed?)[.!]{0,3}\s{0,9}$|^\[done\]"
    rf"|^{_NOT_WELL}.{{0,120}}\b{_RUN} (?:\S{{1,40}} )?(?:is |has )?(?:completed|succeeded|done)\b"
    r"|\bexit(?:ed)? ?(?:with )?(?:code|status)\W{1,3}0(?::0)?(?![.x:\d])"
    r"|\brc ?[=:] ?0(?![.x:\d])"
    r"|\b(?:model|checkpoint|weights|adapter|results?|outputs?|images?|videos?)"
    r" (?:\w{2,10} )?(?:saved|written|exported)\b"
    r"|\b(?:test|val(?:idation)?|eval(?:uation)?|final|best)[ _](?:\w{1,12}[ _])?"
    r"(?:accuracy|acc|loss|score)\W{1,3}\d"
)
# In lower case: the program gave up.
FINAL = re.compile(
    r"retry\(total=0|max retries exceeded|could not find a version|no matching distribution"
    r"|could not install packages|failed to fetch|\bgiving up\b|failed to do request"
)
_STAGE = re.compile(r"\s*(#\d{1,4}) |\s*([\w.-]{1,60}) {0,30}\| |\[?(rank\d{1,5})\]?: ")


def find_stage(line: str) -> str:
    """The step, container or rank that wrote a line (BuildKit, Compose, torch); "" for others.

    >>> find_stage("#14 812.3 Collecting torch")
    '#14'
    """
    found = _STAGE.match(line)
    return (found[1] or found[2] or found[3]) if found else ""
