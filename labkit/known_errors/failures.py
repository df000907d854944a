"""The forms in which programs report failures, whatever failed: none is a known error."""

from __future__ import annotations

from labkit.host.packages import Fix
from labkit.known_errors.foreign import FAILED, FAILED_ALONE
from labkit.known_errors.healthy import HEALTHY
from labkit.known_errors.model import KnownError
from labkit.known_errors.summaries import COUNTED, SUMMARIES
from labkit.known_errors.translate import OTHER_SYSTEM_ERRORS, SYSTEM_ERRORS

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
    r"(?![^\w\n]{1,4}(?:kein\w{0,2}|ohne|aucune?|nessun\w?|nenhum\w?|ninguno|geen|ingen|brak|нет|无|なし|없음"
    r"|-)\W{0,3}$)(?!.{1,80}[:=\uff1a]\x20?-?\d{1,9}[.,]\d{1,9}\x20?%?\s*$)(?=[^\w\n]{1,4}[^\W\d])"
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
    r"^\{\"message_type\":\s?\"error\"",
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
    # gcc's, in front of which a file and a line stand.
    rf"^\S{{1,160}}:\d{{1,7}}:\x20?(?:[^\W\d]{{1,12}}\x20)?(?:{_OTHER_LEVELS})\x20?[:\uff1a]",
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
    r"^Found [1-9]\d{0,5} errors?(?:\.(?:\s*$| Watching\b)| in \d)",
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
    # Ansible says below it that it does not matter.
    r"(?:error|fatal|panic|critical): (?![^\n]{0,600}\n\.\.\.ignoring)",
    r"^(?:\S{1,160}\x20{1,4})?(?:error|fatal|panic|critical)\[\w{1,8}\]: ",
    # MSVC, TypeScript, C#.
    r"\berror (?:C|CS|LNK|MSB|TS|D|FS|BC|NU|NETSDK|CVT|RC|U)\d{3,5}\x20?: ",
    # Arm, Sun, Wind River; PC-lint, Keil; ModelSim; Ant around any of them; libxml2; Doxygen.
    r"^\"[^\"\n]{1,200}\", line \d{1,7}: (?:fatal )?error\b",
    r"^\S.{0,200}?\x20?\(\d{1,7}(?:,\d{1,5})?\)\x20?: (?:fatal )?error \w{1,12}: ",
    r"^\# \*\* (?:Error|Fatal)\b[^:\n]{0,60}: ",
    r"^\[(?:javac|java|exec|javadoc|cc)\] \S{1,200}:\d{1,7}: error: ",
    r"^\S{1,200}:\d{1,7}: parser error : ",
    r"^\S{1,200}:\d{1,7}(?::\d{1,5})?:(?:\w{1,40}:)?error:\S",
    r"^\S{1,200}:\d{1,7}:error: \S",
    r"^\S{1,200}:\d{1,7}: \[(?-i:[EF]\d{4})\([a-z-]{1,60}\),",
    r"^Internal (?:compiler )?Error (?:at|in) \(\d",
    r"^\S{1,40}: \d{4}-\d{3} Error occurred\b",
    r"^(?:nvcc|ptxas|nvlink|fatbinary|cicc) (?:fatal|error)\s{0,8}: ",
    r"^An? (?:\w{1,20} )?error (?:has )?occurred\b",
    # Windows' shells.
    r"\bis not recognized as (?:an internal or external command|(?:the|a) name of a cmdlet)\b",
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
    rf"^(?!expected){_NAMED}{{0,5}}failed: {_NOT_ONE}(?=\S)",
    r"^Failed (?:to|with) ",
    r"\bHTTP/[\d.]{1,3}\"? 5\d\d\b",
    r"\b(?:500 Internal Server Error|502 Bad Gateway|504 Gateway Time-?out)\b",
    r"\b503 Service (?:Temporarily )?Unavailable\b",
    r"\bHTTP Error [45]\d\d\b",
    r"\b[45]\d\d (?:Client|Server) Error\b",
    r"\b(?:exit|exited|returned).{0,30} (?:code|status):? (?!20\d\b|30\d\b)[1-9]",
    r"\bstatus.{0,30} code:? (?!20\d\b|30\d\b)[1-9]",
    r"\bstatus.{1,30} status:? (?!20\d\b|30\d\b)[1-9]",
    r"\bstatus=[1-9]\d{0,2}/\w{1,20}\b(?! \(success\))",
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
    r"^[1-9]\d{0,5} failing\s*$",
    r"^not ok \d{1,6}\b(?!.{0,200}# (?:TODO|SKIP))",
    r"^\[\x20{0,3}(?-i:FAILED)\x20{0,3}\] \S",
    # Surefire, TestNG, ScalaTest, RSpec, Gradle, CTest.
    r"^Tests run: \d{1,6}, .{0,40}?\b(?:Failures|Errors): [1-9]",
    r"^Total tests run: \d{1,6}, .{0,60}?\bFailures: [1-9]",
    r"^[1-9]\d{0,6} examples?, [1-9]\d{0,5} failures?\b",
    r"^\d{1,6} tests? completed, [1-9]\d{0,5} failed\b",
    r"^\d{1,3}% tests passed, [1-9]\d{0,5} tests? failed\b",
    # JUnit 5, .NET, PHPUnit.
    r"^\[\s{1,12}[1-9]\d{0,5} (?:tests|containers) failed\s{1,12}\]",
    r"^Failed!\s{1,4}- Failed:\s{1,12}[1-9]",
    r"^Tests: \d{1,6}, Assertions: \d{1,7}, .{0,40}?\b(?:Errors|Failures): [1-9]",
    r"\*\*\*(?-i:Failed|Exception|Timeout)\b",
    r"^The following tests (?-i:FAILED):",
    r"(?-i:FAILED) \[",
    # Robot Framework; not a row of a table.
    r"^[^|\n]{1,200}\|\x20(?-i:FAIL)\x20\|\s*$",
)
# How other well-known programs and services say that something failed.
_OF_SERVICES = (
    # CI: GitHub, Jenkins, Travis, Xcode, Snakemake, Unity, Yarn, Wandb.
    r"\bProcess completed with exit code [1-9]",
    r"\bterminated with exit code: [1-9]",
    r"^Finished: (?-i:FAILURE|ABORTED)\s*$",
    r"^Done\. Your build exited with [1-9]",
    r"^\*\* (?-i:BUILD|TEST|ARCHIVE) (?-i:FAILED) \*\*",
    r"^Exiting because a job execution failed",
    r"^Aborting batchmode due to failure",
    r"^\W{0,4}YN0000: \W{0,4}Failed with errors",
    r"^Detected \d{1,3} failed runs in a row",
    r"^\[(?-i:FAIL)\] \S",
    r"^\W{1,4}Deployment failed\b",
    r"\bBecause .{1,200} version solving failed\.",
    # Ansible's last line of a host.
    r"^\S{1,80}\s{1,40}: ok=\d{1,5}\s{1,8}changed=\d{1,5}\s{1,8}unreachable=\d{1,5}\s{1,8}"
    r"failed=[1-9]",
    # Compilers and linkers.
    r"\bundefined reference to [`'\"]",
    r"^\S{0,80}ld: cannot find -l\w",
    r"^(?:\./)?\S{1,160}\.go:\d{1,7}:\d{1,7}: (?:undefined|cannot use|missing|too many|syntax error"
    r"|no required module|declared and not used|invalid)",
    r"^! (?:LaTeX Error: |Emergency stop\.|Undefined control sequence)",
    r"^rake aborted!",
    r"^Could not find gem '",
    # Shells.
    r"^\S{1,160}: line \d{1,7}: (?:\S{1,80}: unbound variable|syntax error)",
    r"^(?:/\S{1,40}/)?(?:ba|da|z|k)?sh: (?:\d{1,6}: )?\S{1,80}: (?:command )?not found\s*$",
    r"^(?:Hangup|Alarm clock|User defined signal [12])\s*$",
    r"^\*\*\* (?:stack smashing|buffer overflow) detected \*\*\*",
    r"^\S{0,80}python[\d.]{0,5}: (?:No module named|can't open file|can't find '__main__')",
    # MPI, Slurm, systemd, supervisord, gunicorn, PM2, nodemon, Heroku, Spring, Kubernetes.
    r"^mpirun noticed that process rank \d",
    r"^srun: Job allocation \d{1,12} has been revoked",
    r"\.(?:service|timer|socket|mount|scope): Start request repeated too quickly",
    r"^\s{0,12}Active: failed \(Result: ",
    r"\bentered FATAL state, too many start retries",
    r"\(exit status [1-9]\d{0,2}; not expected\)",
    r"\bReason: Worker failed to boot\.",
    r"\bhad too many unstable restarts\b",
    r"^\[nodemon\] app crashed\b",
    r"\bState changed from \w{1,20} to crashed\b",
    r"\b(?:Web|Application) server failed to start\.",
    r"\bJob has reached the specified backoff limit\b",
    r"^\S{1,120}\s{1,40}0/[1-9]\d{0,2}\s{1,40}(?:Error|CrashLoopBackOff|ImagePullBackOff|ErrImagePull"
    r"|CreateContainerError|RunContainerError|Init:Error)\s",
    # ssh, rsync, git, DNS, ping, gpg, accounts, disks, checksums.
    r"^client_loop: send disconnect: ",
    r"^Connection to \S{1,120} closed by remote host\.",
    r"^rsync: (?:\[\w{1,20}\] )?connection unexpectedly closed",
    r"^Automatic merge failed; ",
    r"^;; connection timed out; no servers could be reached",
    r"^\*\* server can't find \S{1,160}: (?-i:NXDOMAIN|SERVFAIL|REFUSED)",
    r"\b100% packet loss\b",
    r"^gpg: (?:decryption|signing|verification|keyserver receive) failed: ",
    r"^(?:su|sudo|passwd|login): Authentication (?:failure|token manipulation error)",
    r"^Login incorrect\s*$",
    r"^useradd: user '\S{1,60}' already exists",
    r"\bRUN fsck MANUALLY\b",
    r"^\w{1,9}sum: WARNING: [1-9]\d{0,5} (?:computed checksums?|listed files?) ",
    r"\bMissing X server or \$DISPLAY\b",
    r"\bFAILED TO BIND TO PORT\b",
    r"^adb: no devices/emulators found",
    r"^\s{0,4}Volume group \"\S{1,80}\" not found",
    # What ends a training: Lightning's check of its metric.
    r"\bMonitored metric \S{1,60} = (?:nan|-?inf) is not finite\b",
)
# By the forms in which programs report failures, whatever failed: never shown as a known error.
FAILURE = KnownError(
    "failure",
    (*_OF_RUNTIMES, *_OF_TOOLS, *_OF_LOGS, *_OF_TESTS, *_OF_SERVICES, *SUMMARIES),
    "",
    Fix(""),
    passes=True,
    # An exception's message may have any word.
    # So may what says that a program gave up, and a compiler's count.
    unless=rf"{HEALTHY}|^(?!(?:\w{{1,40}}\.){{0,8}}\w{{0,40}}(?-i:Error|Exception): "
    r"|.{0,160}(?:\bgiving up\b|entered FATAL state|; not expected\)|backoff limit|unreachable=\d"
    r"|(?:Process completed|terminated) with exit code|WARNING: \d)"
    rf"|\d{{1,5}} warnings? and [1-9]|.{{0,160}}{COUNTED}).{{0,400}}"
    r"(?:\b(?:0|no) errors?\b|(?<!\d\s)\bignor|\bretr(?!ies\W{1,4}0\b)|\bwarn|falling back"
    r"|(?:code|status):? \d{1,3}\.\s*$|(?-i:segmentation fault)"
    # TensorFlow and JAX start with it, and go on.
    r"|Unable to register cu\w{2,6} factory|already (?:been )?registered"
    # What systems without a fault say: needrestart, motd, firmware, desktops, a package's script,
    # conda.
    r"|processor microcode upgrades|changelogs\.ubuntu\.com|\bACPI (?:BIOS )?Error\b"
    r"|^JS ERROR: |Failed to set mode: |working profile|portal window|GLib-\w{0,8}-?CRITICAL"
    # PostgreSQL ends this worker so whenever it stops.
    r"|background worker \"logical replication launcher\""
    r"|deb-systemd-invoke|read envs : none)",
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

# A program's name before what it says, but one that tidies up, or a word that is none.
_PROGRAM = (
    r"(?:(?!(?:rm|rmdir|mkdir|ln|kill|find|du|grep|debconf|mesg|xauth|ldconfig|locale|hyp|ref|note"
    r"|out|output|message|reason|img_\d+\.jpg)\b)[a-z][\w./-]{1,60}: )"
)
_NOUNS = (
    r"(?:arguments?|options?|commands?|subcommands?|flags?|parameters?|formats?|headers?|syntax"
    r"|magic|checksums?|signatures?|configurations?|licen[cs]es?|credentials?|passwords?|addresses"
    r"|address|files?|data|input|response|operation|state|end of \w{1,20})"
)
_PARTS = (
    r"(?:stage|step|job|task|build|phase|worker|node|shard|chunk|part|batch|upload|download|startup"
    r"|start-?up|initiali[sz]ation|setup|connection|backup|restore|migration|deployment|deploy"
    r"|export|import|validation|verification|conversion|compilation|training|test|suite|check"
    r"|checks|pipeline|request|command|operation|transfer|transaction|installation|update|upgrade"
    r"|license|session|process|program|server|client)"
)
# A level, a name in brackets and a time before what a program says at its end.
_LEAD = (
    r"(?:(?:(?-i:INFO|WARN|WARNING|NOTICE)\b:?|\[[\w\x20.:/-]{1,40}\]:?|\d\d:\d\d:\d\d[\d.,]{0,8})"
    r"[\x20\t]{1,4}){0,3}"
)
_LOST = r"(?:failed|crashed|aborted|rejected|refused|interrupted|(?:died|exited) unexpectedly)"
_NUMBER = r"[\w.:/#-]{0,40}\d[\w.:/#-]{0,40}"
# How the last line of a program that failed says so, in plain words and without a level. Within a
# log the same words are often of something that goes on.
ENDING = KnownError(
    "ending",
    (
        # `zorp: cannot connect to broker`.
        rf"^{_PROGRAM}{{1,2}}(?:cannot|can't|could not|couldn't|unable to|failed to) [a-z]",
        rf"^{_PROGRAM}{{0,2}}(?:invalid|unrecogni[sz]ed|unknown|unsupported|unexpected|malformed"
        rf"|corrupt(?:ed)?|bad|no|no such|not enough|wrong|ambiguous|duplicate)"
        rf" (?:[\w'\"-]{{1,30}}\x20){{0,2}}{_NOUNS}\b",
        # `terminated: lease lost`, `rejected by server`.
        r"^(?:terminated|aborted|abort|aborting|rejected|refused|crashed): [a-z]",
        r"^(?:aborted|rejected|refused|denied) by [a-z]",
        # `stage 2 failed`, `upload rejected by server`.
        rf"^{_PROGRAM}?(?:[a-z][\w-]{{1,30}} ){{0,3}}{_PARTS}"
        rf"(?: (?:of|to|from|for|part|{_NUMBER})){{0,4}}"
        rf" (?:was |has |is )?{_LOST}(?:[.!]{{0,3}}$|: [a-z]|\x20\()",
        rf"^{_PROGRAM}?(?:[a-z][\w-]{{1,30}} ){{0,2}}(?:to|for) [\w.:/#-]{{1,60}} (?:was )?"
        rf"{_LOST}[.!]{{0,3}}$",
        rf"^(?!\d).{{1,160}}\b{_LOST} (?:by|because|due to) \w.{{0,80}}$",
        r"^.{1,160}[,;:-] (?:aborting|bailing out|giving up|quitting)[.!]{0,3}$",
        rf"^{_PROGRAM}?connection (?:to [\w.:/-]{{1,80}} )?(?:was )?"
        r"(?:lost|refused|reset|timed out)\b",
        rf"^{_PROGRAM}?{_PARTS}(?: [\w.:/#-]{{1,40}})? timed out\b",
        rf"^{_PROGRAM}?(?:checksum|hash|digest|signature|size|version) mismatch\b",
        rf"^{_PROGRAM}?[\w./-]{{1,80}} (?:is|are) not (?:a valid|a|an) [a-z]",
        rf"^{_PROGRAM}?(?:missing required|too few|too many) arguments?\b",
        rf"^{_PROGRAM}(?:option|argument|parameter) \S{{1,60}} is required\b",
        rf"^{_PROGRAM}?(?:[a-z]{{1,20}} )?(?:quota|limit) exceeded\b",
        rf"^{_PROGRAM}?{_PARTS}(?: {_NUMBER}){{0,2}} (?:died|disconnected unexpectedly"
        r"|ended prematurely)\b",
        rf"^{_LEAD}{_PROGRAM}{{0,2}}(?!no\b|any\b)"
        r"(?:[a-z][\w.-]{0,30}\x20){0,3}"
        r"(?:is |was )?unreachable[.!]?$",
        rf"^{_LEAD}{_PROGRAM}{{0,2}}(?:gave|giving) up (?:after|on|waiting) \S",
        rf"^{_LEAD}{_PROGRAM}{{0,2}}timed out (?:waiting|connecting|reading|after|while) \S",
        rf"^{_LEAD}{_PROGRAM}{{0,2}}refusing to [a-z]",
        rf"^{_LEAD}{_PROGRAM}{{0,2}}(?:ran )?out of (?:retries|attempts|disk space|space"
        r"|file descriptors|inodes|credits)[.!]?$",
        rf"^{_LEAD}{_PROGRAM}{{0,2}}(?:aborting|bailing out)[.!]{{0,3}}$",
        rf"^{_LEAD}{_PROGRAM}{{0,2}}(?:no (?:quorum|leader|master|heartbeat|answer"
        r"|response|licen[cs]e"
        r"|connection|route)|lost (?:quorum|the|connection|lease|leader)|cannot|can't|unable to"
        r"|could not)\b.{0,80}, (?:shutting down|exiting|stopping|terminating)[.!]?$",
        rf"^{_LEAD}{_PROGRAM}{{0,2}}(?:key|field|value|option|argument|parameter|setting|property)"
        r" (?:\"[^\"\n]{1,60}\"|'[^'\n]{1,60}'|`[^`\n]{1,60}`)"
        r" (?:must|has to|needs to) be .{1,60}$",
        rf"^{_LEAD}(?:[a-z]\w{{0,20}}\x20){{0,3}}(?:[\w./-]{{1,60}}:\x20)?quota (?:is )?"
        r"(?:used up|exhausted|exceeded)[.!]?$",
        rf"^{_LEAD}{_PROGRAM}{{0,2}}(?:(?:the|your|its) )?"
        r"(?:licen[cs]e|subscription|trial|certificate)"
        r" (?:has |is |was )?expired(?: (?:on|at|since) .{1,40})?[.!]?$",
        # Logs are read with the system's messages in English.
        rf"^{_PROGRAM}{{1,2}}(?:{'|'.join((*SYSTEM_ERRORS, *OTHER_SYSTEM_ERRORS))})[.]?$",
        rf"^(?:{'|'.join(SYSTEM_ERRORS)})[.]?$",
        rf"^{_PROGRAM}.{{1,200}}: {_ERRNO}[.]?$",
        rf"^{_PROGRAM}{FAILED}",
        r"^.{1,160}\.\.\. failed: [a-z].{0,80}$",
        rf"^(?=[^:\n]{{1,80}}$){_LEAD}{FAILED_ALONE}",
        rf"^{_PROGRAM}?(?:oops, )?something went wrong\b",
        rf"^{_PROGRAM}?expected \S.{{0,80}} (?:but |, )?got \S",
        rf"^{_PROGRAM}(?:no space left|permission denied|access denied|no route to host"
        r"|out of memory|broken pipe|connection reset by peer|not found|device busy|disk full)\b",
    ),
    "",
    Fix(""),
    passes=True,
    unless=rf"{HEALTHY}|(?<![\w-])(?:if|when|whenever|unless|otherwise|in case|should|may|might"
    r"|will(?! not)|would|ignor\w{1,4}|skip\w{1,4}|warn\w{0,4}|retrying|fall\w{0,3} ?back"
    r"|default to|using (?:the )?defaults?|instead|optional\w{0,2}|continu\w{1,4}"
    r"|disabl\w{1,3}|passed|succe\w{1,10}|by (?:the )?user|telemetry|downloading|fetching|pulling"
    r"|creating|writing|building|trying|proceeding|moving on|next attempt|filter\w{0,3}"
    r"|no job control|unable to register)(?![\w-])"
    # A paragraph of a text, a heading, a list, code.
    r"|[a-z)]\.\x20[A-Z][a-z]{0,20}\x20[a-z]{1,20}\x20[a-z]|^\s*(?:#|//|\*|-|\d{1,2}[.)]\x20|\|)"
    r"|[;{}]\s*$|tainting kernel"
    # A count of what is not there, or a setting.
    r"|\b(?:no|0|never|without|none|zero|any) (?:\w{1,20} ){0,2}(?:failed|failures?|errors?|lost"
    r"|problems?|issues?|rejected|refused|denied|killed|crashed|aborted)\b|: -?[\d.]{1,20}\s*$",
)
