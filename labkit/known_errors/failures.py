"""The forms in which programs report failures, whatever failed: none is a known error."""

from __future__ import annotations

from labkit.host.packages import Fix
from labkit.known_errors.healthy import HEALTHY
from labkit.known_errors.model import KnownError

# What a line of a log has before its level, where `read.PREFIXES` leaves it: times, numbers, names
# in brackets, a letter for the level.
_HEAD = (
    r"(?:(?:\[[^\[\]\n]{1,60}\]:?|\{[^{}\n]{1,60}\}|\d[\d:.,/TZ+-]{0,30}(?:[AP]M)?|UTC|[AP]M|[A-Z],|-|\|)"
    r"[\x20\t]{1,4}){0,7}"
)
_WORDS = r"(?=.{0,200}(?-i:[a-z]{2}))"
# What the level is of, where it is no level: `ERROR rate`, `ERROR count`, a heading.
_NOT_LEVEL = (
    r"(?!\W{1,3}(?:rates?|counts?|levels?|thresholds?|handl(?:ers?|ing)|log(?:s|ging|file)?|messages?"
    r"|lines?|budget|bars?|metrics?|total|events?|and|or|if)\b)"
)
_STAMP = (
    r"\d{4}(?:\d{4})? \d\d:\d\d:[\d.]{2,20} .{1,160}?\.(?:go|cc|cpp|cu|c|hpp|h|cuh|py|rs)"
    r":\d{1,6}\] "
)
# A number that says that nothing failed.
_NOT_ONE = r"(?!\W{0,3}(?:0(?![x\w])|none\b|null\b|no\b|false\b|never\b|n/a\b|\[\]|-\s*$))"
_NAMED = r"(?:(?!(?-i:INFO|DEBUG|TRACE|NOTICE)\b)[\w./'#\[\]-]{1,60}\x20{1,4})"
# What Android's log names.
_TAG = r"[\w.:$-]{1,60}\x20{0,30}"
# `ERROR` and `SEVERE` in other languages: with Latin letters, and with others.
_LATIN_LEVELS = (
    "FEHLER|SCHWERWIEGEND|ERREUR|ERRORE|ERRO|FOUT|FEJL|FEIL|VIRHE|CHYBA|HIBA|HATA|KRITISCH"
)
_OTHER_LEVELS = "błąd|ошибка|помилка|критическая|错误|錯誤|エラー|오류|에러|lỗi|σφάλμα"
# After it a text, neither a number nor a word for none.
_SAYS = (
    r"(?!\W{1,4}(?:kein\w{0,2}|ohne|aucune?|nessun\w?|nenhum\w?|ninguno|geen|ingen|brak|нет|无|なし|없음"
    r"|-)\W{0,3}$)(?=\W{1,4}[^\W\d])"
)
# Levels and severities, in the forms of the libraries that write logs.
_OF_LOGS = (
    # Python's logging, log4j, Rust's tracing and env_logger, slog, zap, loguru, Celery, pino, Nest,
    # PostgreSQL, java.util.logging: `ERROR module: text`, `ERROR:module:text`, `[ERROR|file.py:7]`.
    rf"^[\[(<|]{{0,2}}\x20?{_HEAD}[\[(<|]?\x20?(?-i:ERROR|CRITICAL|FATAL|SEVERE)"
    rf"(?:(?=[\s:|/\])>-])|$){_NOT_LEVEL}{_WORDS}",
    # The logger before the level: `trainer.loop ERROR text`, `production.ERROR: text`.
    rf"^{_HEAD}(?!(?:no|not|an?|the|any|with|of|on|at|in|for|see|set|log|found|all|each|every|this|that"
    r"|to|by|show|print|only|as|from)\b)(?-i:[a-z_])[\w.]{1,80}\x20{1,3}(?-i:ERROR|CRITICAL|FATAL)"
    rf"\s{_NOT_LEVEL}{_WORDS}",
    r"^[\w-]{1,40}\.(?-i:ERROR|CRITICAL|ALERT|EMERGENCY): \S",
    # Monolog, zerolog's console, logrus.
    r"^(?:\d[\d:.]{2,20}\x20?[AP]M )?(?-i:ERR|FTL|PNC) (?=.{0,200}(?-i:[a-z]{2}))",
    r"^(?-i:ERRO|FATA|PANI)\[\d{1,12}\] ",
    r"\|\x20{0,3}(?-i:ERROR|CRITICAL|FATAL)\x20{0,8}\|\x20?(?=.{0,200}(?-i:[a-z]{2}))",
    r"\b(?-i:ERROR|FATAL|CRITICAL)\b.{0,40} - ",
    r"\blevel=(?:error|fatal|panic)\b",
    *(
        rf"\"{name}\":{gap}\"(?:error|fatal|panic|critical)\""
        for name in ("level", "severity", "lvl")
        for gap in ("", " ")
    ),
    # pino and bunyan number the levels.
    r"^\{(?=.{0,400}\"msg\":\s?\"\w).{0,200}\"level\":\s?[56]0,",
    # glog, abseil, klog, torch; TensorFlow's own form of it. Each begins with a sign of its own, or
    # it would be tried at every letter of a log.
    rf"^E{_STAMP}",
    rf"^F{_STAMP}",
    rf"^\[[EF]{_STAMP}",
    rf"^\[rank\d{{1,5}}\]:\[?[EF]{_STAMP}",
    r"^\d{4}-\d\d-\d\d \S{1,20}: [EF] \S{1,160}\.(?:cc|cpp|cu|h):\d{1,6}\] ",
    r"\[(?:error|fatal|critical|emerg|alert|crit)\]",
    r"^(?:fail|crit): [\w.]{1,160}\[\d{1,9}\]\s*$",
    # NetworkManager, nginx and syslog's names in angle brackets; not an element of XML.
    rf"^{_HEAD}<(?:err|error|crit|critical|alert|emerg|fatal|panic)>\x20{{1,4}}(?!.{{0,400}}</)\S",
    # Android's logcat, brief or with times, and threadtime.
    rf"^[EF]/{_TAG}\(\x20{{0,8}}\d{{1,7}}\): \S",
    rf"^\d[\d:. -]{{4,30}}\x20[EF]/{_TAG}\(\x20{{0,8}}\d{{1,7}}\): \S",
    rf"^\d\d-\d\d\x20\d\d:\d\d:\d\d\.\d{{3}}(?:\x20{{1,6}}\d{{1,7}}){{2}} [EF] {_TAG}: ",
    # The level in other languages: in capitals, or before a colon as compilers have it.
    rf"^[\[(<|]{{0,2}}{_HEAD}[\[(<|]?(?-i:{_LATIN_LEVELS})(?=[\s:|/\])>-]){_SAYS}",
    rf"^[\[(<|]{{0,2}}{_HEAD}[\[(<|]?(?-i:GRAVE):{_SAYS}",
    rf"^[\[(<|]{{0,2}}{_HEAD}[\[(<|]?(?:{_OTHER_LEVELS})(?=[\s:|/\])>\uff1a-]){_SAYS}",
    rf"^(?:\S{{1,160}}\x20)?(?:fehler|erreur|errore|fout|fejl|feil|virhe|chyba|hiba|hata)"
    rf"(?=\x20?:\x20){_SAYS}",
)
# Unix tools, and what the C library says of a system call that failed. What tidies up (rm, kill)
# finds nothing to do there, and goes on.
_UNIX = (
    r"^(?:\S{0,80}/)?(?:cat|cp|mv|ln|ls|dd|df|du|head|tail|sort|uniq|wc|cut|tr|tee|stat|touch|chmod"
    r"|chown|chgrp|readlink|realpath|install|md5sum|sha\d{1,3}sum|find|[ef]?grep|sed|[gmn]?awk"
    r"|xargs|diff|cmp|patch|tar|cpio|gzip|gunzip|bzip2|xz|zstd|zip|unzip|rsync|scp|mount|mkdir"
    r"|mktemp|split|join|paste|od|file|ldd|objdump|strip|ar|nm|taskset|nohup|env|timeout|source"
    r"|ba?sh|dash|zsh|ksh)"
)
_ERRNO = (
    r"(?:No such file or directory|Permission denied|Not a directory|Input/output error|Read-only"
    r" file system|Invalid argument|Operation not permitted|Too many open files"
    r"|Disk quota exceeded|Argument list too long|Exec format error|Text file busy"
    r"|Stale file handle|File name too long"
    r"|Too many levels of symbolic links|Invalid cross-device link|Bad file descriptor|Broken pipe"
    r"|No such device or address|Transport endpoint is not connected)"
)
_SIGNALS = (
    r"(?:Aborted|Abort trap|Segmentation fault|Bus error|Floating point exception|Illegal"
    r" instruction|Trace/(?:breakpoint|BPT) trap|Bad system call|CPU time limit exceeded"
    r"|File size limit exceeded)"
)
# What a program does at the end of a line that says why.
_LEAVES = r"(?:exiting|aborting|quitting|terminating|bailing out|giving up)"
_GOES_ON = (
    r"(?!.{0,300}\b(?:using|defaults?|default(?:s|ing)|skip\w{0,4}|continu\w{1,4}|instead|optional"
    r"|disabl\w{1,4}|fall\w{0,4}|trying|will|without|telemetry|proceeding|moving on|downloading"
    r"|fetching|creating|generating|building|switching)\b)"
)
# `Unable to parse config: the reason`, by the verb.
_UNDONE = (
    r"(?:parse|open|read|load|write|save|create|connect|find|start|allocate|initiali[sz]e|bind|decode"
    r"|import|resolve|fetch|download|access|locate|execute|run|authenticate|mount|lock|acquire)\b"
    rf"{_GOES_ON}.{{1,160}}?: \S"
)
# What compilers, build tools and shells print.
_OF_TOOLS = (
    rf"^\S{{1,160}}: line \d{{1,7}}:\s{{1,8}}\d{{1,9}} {_SIGNALS}\b",
    rf"^\[\d{{1,4}}\][+-]?\s{{1,8}}\d{{0,9}}\s{{0,8}}{_SIGNALS}\b",
    r"^zsh: (?:abort|bus error|floating point exception|illegal hardware instruction|trace trap)\b",
    r"^(?-i:Aborted)\s*$",
    r"^(?:Abort trap|Floating point exception|Illegal instruction|Trace/BPT trap)(?::"
    r" \d{1,2})?\s*$",
    # A search names each folder that it may not read, and goes on.
    r"^(?!\S{0,80}\b(?:find|du|grep): .{0,240}Permission denied)"
    rf"{_UNIX}: (?:.{{0,240}}: )?{_ERRNO}\s*$",
    rf"{_UNIX}: (?:invalid |unrecognized |unknown |illegal |ambiguous |missing |extra operand"
    rf"|option requires)(?=\S|\x20)",
    r"^(?:tar|gzip|bzip2|xz|unzip|zstd): .{0,200}(?:not recoverable|not in \w{1,9} format"
    r"|unexpected end of|does not look like|exiting with failure|cannot find zipfile"
    r"|file format not recognized)",
    r"^[\w./+-]{1,60}: .{0,160}: fatal: \S",
    r"^(?:\d{1,5} warnings? and )?[1-9]\d{0,5} errors? generated\b",
    r"^Found [1-9]\d{0,5} errors?(?:\.\s*$| in \d)",
    r"^(?:[\w./-]{1,80}: )?(?:parse|parsing|syntax|lexical|runtime|import|link|type|load) error"
    r" (?:near|at|in|on|before)\b.{0,120}(?:line \d|unexpected|:\d)",
    rf"(?:^|[,;.:-] )giving up(?:\x20(?:on|after|trying|now)\b|[.!]?\s*$){_GOES_ON}",
    r"\b(?:could not|couldn't|cannot|can't|unable to|failed(?!\W{1,3}0\b)|failure|no such"
    r"|(?:is|are|was|were|file) (?:missing|invalid|not found))\b"
    rf".{{0,240}}[,;.:-] {_LEAVES}(?: now)?[.!]{{0,3}}\s*$",
    rf"^unable to {_UNDONE}",
    rf"^could(?: not|n't) {_UNDONE}",
    rf"^cannot {_UNDONE}",
    rf"^can't {_UNDONE}",
    r"^(?:\S{1,160}\x20{1,4})?(?:(?:fatal|internal|parse|syntax|compile|compiler|linker|python) )?"
    r"(?:error|fatal|panic|critical): ",
    r"^(?:\S{1,160}\x20{1,4})?(?:error|fatal|panic|critical)\[\w{1,8}\]: ",
    # MSVC, TypeScript, C#.
    r"\berror (?:C|CS|LNK|MSB|TS|D|FS|BC|NU|NETSDK|CVT|RC|U)\d{3,5}\x20?: ",
    r"^(?:nvcc|ptxas|nvlink|fatbinary|cicc) (?:fatal|error)\s{0,8}: ",
    r"^An? (?:\w{1,20} )?error (?:has )?occurred\b",
    r"\bAssertion ['`].{1,200}' failed\b",
    r"^(?:\w{0,4}make(?:\[\d{1,3}\])?: )?\*\*\* .{1,200}(?: Error -?\d| Stop\.$)",
    r"^ninja: build stopped",
    r"^CMake Error\b",
    r"^npm (?:ERR!|error) \w",
    r"\bERR_PNPM_\w",
    r"\bELIFECYCLE\b",
    r"^(?:\[INFO\] )?(?-i:BUILD) (?-i:FAILED|FAILURE)\b",
    r"^(?-i:FAILURE): \w",
    # `Training failed: the reason`, `FAILED: 3 of 8`.
    rf"^{_NAMED}{{0,5}}failed: {_NOT_ONE}(?=\S)",
    r"^Failed (?:to|with) ",
    r"\bHTTP/[\d.]{1,3}\"? 5\d\d\b",
    r"\b(?:500 Internal Server Error|502 Bad Gateway|504 Gateway Time-?out)\b",
    r"\b503 Service (?:Temporarily )?Unavailable\b",
    r"\bHTTP Error [45]\d\d\b",
    r"\b[45]\d\d (?:Client|Server) Error\b",
    r"\b(?:exit|exited|returned).{0,30} (?:code|status):? (?!20\d\b|30\d\b)[1-9]",
    r"\bstatus.{0,30} code:? (?!20\d\b|30\d\b)[1-9]",
    r"\bstatus.{1,30} status:? (?!20\d\b|30\d\b)[1-9]",
    r"\bstatus=[1-9]\d{0,2}/\w",
    r"core dumped",
    r"Segmentation fault",
)
# What a language's runtime prints of a program that it ends.
_OF_RUNTIMES = (
    r"Traceback \(most recent call last\)",
    r"^(?:\w{1,40}\.){0,8}\w{0,40}(?-i:Error|Exception)(?:: |$)",
    r"^thread '[^']{1,60}' (?:\(\d{1,9}\) )?panicked at ",
    r"^goroutine \d{1,9} \[\w",
    r"^Exception in thread ",
    r"^Unhandled exception\b",
    r"^terminate called after throwing",
    # Sanitizers, valgrind and compute-sanitizer.
    r"^==\d{1,9}==\s?(?-i:ERROR): \S",
    r"^(?-i:SUMMARY): \w{1,20}Sanitizer: ",
    r"^=+(?:\d{1,9}==)?\s(?-i:ERROR) (?-i:SUMMARY): [1-9]",
    r":\d{1,7}:\d{1,7}: runtime error: \w",
    # Node, Deno and browsers: the message above its stack, or the source with a mark below it.
    r"^(?!\w{0,40}(?:Warning|Trace)\b)(?-i:[A-Z])\w{0,60}(?: \[\w{1,60}\])?(?:: [^\n]{1,300})?\n"
    r"\s{0,20}at [^\n]{0,300}(?:\.(?:js|mjs|cjs|jsx|ts|mts|cts|tsx):|node:[\w/]{1,80}:"
    r"|<anonymous>:)\d{1,7}:\d{1,7}\)?\s*$",
    r"^throw [^\n]{1,200}\n\s{0,160}\^{1,80}\s*$",
    r"^Uncaught (?:\(in promise\) )?(?-i:[A-Z])\w{1,60}: \S",
    # R.
    r"^Error in \S.{0,160} :(?=\s|$)(?!\s{1,4}-?\d[\d.e+-]{0,20}\s?%?\s*$)",
    r"^(?-i:Execution) halted\s*$",
    # Ruby.
    r"^\S{1,200}:\d{1,7}:in [`'].{1,160}?': (?:.{0,300}\((?:\w{1,60}::){0,6}(?-i:[A-Z])\w{0,60}\)"
    r"|unhandled exception)\s*$",
    # Lua.
    r"^(?:\S{0,160}/)?(?:lua:|luajit:|luatex:|lua5\.\d:|luajit-2\.\d\.\d:) .{0,200}?"
    r"(?::\d{1,7}: |cannot open )",
    r"^stack traceback:\s*$",
    # Elixir and Erlang.
    r"^\*\* \((?:[\w.]{0,120}Error|exit|throw|Mix|EXIT from [^()\n]{1,80})\) \S",
    r"^\*\* exception (?:error|exit|throw): ",
    r"^=(?-i:ERROR|CRASH) (?-i:REPORT)=",
    # Fortran: GNU's, Intel's.
    r"^(?:Fortran )runtime error: \S",
    r"^forrtl: (?:severe|error)\b",
    r"^(?-i:ERROR) (?-i:STOP)\b",
    r"^Program received signal (?-i:SIG(?:ABRT|SEGV|BUS|FPE|ILL|SYS))\b",
    # Haskell.
    r"^CallStack \(from HasCallStack\):",
    r"^\S{1,80}: Uncaught exception \S",
    r"^\S{1,80}: Prelude\.[\w!]{1,40}: \S",
    r"\.hs:\S{1,40}: Non-exhaustive ",
    # Perl, Zig, Clojure.
    r"^(?:Died|Can't|Undefined subroutine|Illegal division|syntax error|Bareword|Not an? \w{1,12}"
    r" reference)\b.{0,300} at \S{1,160} line \d{1,7}[.,]",
    r"^thread \d{1,9} panic: ",
    r"^Execution error (?:\(|at )",
)
# pytest, unittest, Go, Rust, jest, vitest, mocha, TAP, googletest, JUnit, CTest.
_OF_TESTS = (
    r"^(?-i:FAILED|ERROR) \S{1,200}\.py(?:::| - |$)",
    r"\.py::\S{1,200} (?-i:FAILED|ERROR)\b",
    r"^=+ .{0,60}\b[1-9]\d{0,5} (?:failed|errors?)\b",
    r"^[1-9]\d{0,5} (?:failed|errors?)(?:, \d| in \d)",
    r"^(?-i:FAILED) \((?:failures|errors)=",
    r"^\s{0,40}--- (?-i:FAIL): ",
    r"^(?-i:FAIL):? (?=\S{0,200}(?-i:[a-z]{2}))",
    r"^(?-i:FAIL)\t\S{1,200}\t",
    r"^test result: (?-i:FAILED)",
    r"^test \S{1,200} \.\.\. (?-i:FAILED)",
    r"^Tests: .{0,60}\b[1-9]\d{0,5} failed\b",
    r"^[1-9]\d{0,5} failing\b",
    r"^not ok \d{1,6}\b(?!.{0,200}# (?:TODO|SKIP))",
    r"^\[\x20{0,3}(?-i:FAILED)\x20{0,3}\] \S",
    r"\*\*\*(?-i:Failed|Exception|Timeout)\b",
    r"^The following tests (?-i:FAILED):",
    r"(?-i:FAILED) \[",
    # Robot Framework; not a row of a table.
    r"^[^|\n]{1,200}\|\x20(?-i:FAIL)\x20\|\s*$",
)
# By the forms in which programs report failures, whatever failed: never shown as a known error.
FAILURE = KnownError(
    "failure",
    (*_OF_RUNTIMES, *_OF_TOOLS, *_OF_LOGS, *_OF_TESTS),
    "",
    Fix(""),
    passes=True,
    # An exception's message may have any word.
    # So may what says that a program gave up, and a compiler's count.
    unless=rf"{HEALTHY}|^(?!(?:\w{{1,40}}\.){{0,8}}\w{{0,40}}(?-i:Error|Exception): "
    r"|.{0,160}\bgiving up\b|\d{1,5} warnings? and [1-9]).{0,400}"
    r"(?:\b(?:0|no) errors?\b|(?<!\d\s)\bignor|\bretr(?!ies\W{1,4}0\b)|\bwarn|falling back"
    r"|(?:code|status):? \d{1,3}\.\s*$|(?-i:segmentation fault)"
    # TensorFlow and JAX start with it, and go on.
    r"|Unable to register cu\w{2,6} factory|already (?:been )?registered)",
)

# An exception that no known error explains, in the form in which Python ends a process; those that
# tell of another process, or of the network between them, are consequences.
OWN_EXCEPTION = KnownError(
    "own-exception",
    (r"^(?:\w{1,40}\.){0,8}\w{0,40}(?-i:Error|Exception): (?=\S)",),
    "",
    Fix(""),
    unless=rf"{HEALTHY}|^(?:\w{{1,40}}\.){{0,8}}(?:Timeout|Rendezvous|BrokenPipe|EOF|ChildFailed"
    r"|(?:Dist|Process|Connection|Ray|Actor|Worker|Engine)\w{0,20})(?:Error|Exception)"
    r"|nccl|\bgloo\b|\bc10d\b|TCPStore|rendezvous|timed? ?out|connection (?:closed|reset|refused)"
    r"|\bpeer\b|remote process|\bretr(?:y|ying)\b",
)

# What is searched for besides the known errors, and is none of them.
BY_FORM = (FAILURE, OWN_EXCEPTION)

_UNDONE_THINGS = (
    r"(?:arguments?|options?|commands?|subcommands?|flags?|parameters?|values?|formats?|types?"
    r"|headers?|tokens?|keys?|names?|users?|hosts?|syntax|characters?|magic|checksums?|signatures?"
    r"|devices?|targets?|paths?|files?|inputs?|data|configurations?|config|versions?|licen[cs]es?"
    r"|credentials?|passwords?|addresses|address|numbers?|sizes?|shapes?|modules?|packages?|plugins?"
    r"|memory|space|permissions?|operations?|states?|responses?|requests?|identifiers?|symbols?)"
)
_LOST = (
    r"(?:failed|crashed|aborted|timed out|rejected|refused|denied|killed|terminated|interrupted"
    r"|corrupt(?:ed)?|lost|stuck|expired)"
)
# How the last lines of a program that failed say so, in plain words and without a level. Within a
# log the same words are often of something that goes on.
ENDING = KnownError(
    "ending",
    (
        # `terminated: ...`, `zorp: aborted`.
        rf"^(?:\S{{1,80}}: )?(?:{_LOST}|abort|aborting|bailing out|giving up)"
        rf"(?:: \S|[.!]{{0,3}}\s*$| (?:by|with|at|after|because|due)\b)",
        # `stage 2 failed`, `the job was aborted by the server`.
        rf"^.{{1,160}}\b{_LOST}(?:[.!]{{0,3}}\s*$|: \S|[,;]? (?:with|after|at|by|on|in"
        r"|because|due|during|while|since|from|to)\b)",
        r"^.{0,160}[,;.:-] (?:aborting|bailing out|giving up)[.!]{0,3}\s*$",
        r"\b(?:cannot|can't|could not|couldn't|unable to|failed to|was not able to) \w",
        r"\b(?:is|are|was|were)(?: not|n't) (?:found|installed|running|available|recogni[sz]ed|set"
        r"|defined|enabled|valid|a valid|reachable|responding|permitted|ready|a directory|a file)"
        r"\b",
        r"\b(?:does|do|did)(?: not|n't) (?:exist|match|respond|start|finish|answer|return)\b",
        rf"\b(?:invalid|unrecogni[sz]ed|unknown|illegal|unsupported|unexpected|missing|bad|malformed"
        rf"|no such|not enough|insufficient|wrong|ambiguous|duplicate)"
        rf" (?:[\w'\"-]{{1,40}}\x20){{0,2}}{_UNDONE_THINGS}\b",
        r"\b(?:permission denied|access denied|unauthorized|forbidden|unreachable|not found"
        r"|mismatch|out of (?:memory|space|range|bounds|disk)|deadlock|overflow"
        r"|connection (?:lost|reset|refused)|no route to host|no space left|must be \w"
        r"|expected .{1,80} (?:but |, )?got)\b",
    ),
    "",
    Fix(""),
    passes=True,
    unless=rf"{HEALTHY}|\b(?:if|when|whenever|unless|otherwise|in case|should|may|might|will|would"
    r"|ignor\w{0,4}|skip\w{0,4}|warn\w{0,4}|retry\w{0,4}|fall\w{0,3} ?back|using|defaults?"
    r"|instead|optional\w{0,2}|continu\w{0,4}|disabl\w{0,3}|passed|succe\w{0,10}|done|finished"
    r"|complete[ds]?|info|debug|notice|note|trace|we|you|your|i|my"
    r"|by (?:the )?user|telemetry|locally|cached?|downloading|fetching|pulling|creating|trying"
    r"|proceeding|moving on|unable to register|removed|could not find tensorrt)\b"
    # What tidies up finds nothing to do there, a search names what it may not read.
    r"|^(?:\S{0,80}/)?(?:rm|rmdir|mkdir|ln|kill|find|du|grep|debconf): "
    # A paragraph of a text.
    r"|[a-z)]\.\x20[A-Z][a-z]{0,20}\x20[a-z]{1,20}\x20[a-z]|tainting kernel|^\W{0,2}[WID]\d{4} "
    r"|\b(?:no|0|never|without|none|zero|any) (?:\w{1,20} ){0,2}(?:failed|failures?|errors?"
    r"|problems?|issues?|mismatch|out of|lost|timed out|rejected|refused|denied|killed|crashed"
    r"|aborted)|\b(?:failed|lost|denied|rejected|killed|aborted|missing|mismatch\w{0,2})"
    r"\W{1,3}(?:0|none|no)\b"
    r"|\?(?:\s|$)|^\s*(?:#|//|\*|-|\d{1,2}[.)]\x20|\|)",
)
