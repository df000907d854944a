"""Plays Windows to labkit's modules: what Python's own modules lack there is missing.

Python runs this file at its start where the folder is on PYTHONPATH, in kernels too.
"""

import builtins
import os
import signal
import socket
import sys
from types import ModuleType

MISSING_MODULES = {"fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
MISSING_NAMES = {
    "os": (
        *("chown", "fchmod", "fchown", "fork", "getegid", "geteuid", "getgid", "getgroups"),
        *("getloadavg", "getpgid", "getpgrp", "getuid", "killpg", "lchown", "mkfifo", "setpgid"),
        *("sched_getaffinity", "setsid", "statvfs", "uname"),
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK"),
    ),
    "signal": ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2"),
    "socket": ("AF_UNIX",),
}


def make_copy(module: ModuleType) -> ModuleType:
    """The module without what Windows lacks."""
    copy = ModuleType(module.__name__)
    left_out = MISSING_NAMES[module.__name__]
    copy.__dict__.update({key: held for key, held in vars(module).items() if key not in left_out})
    return copy


COPIES = {module.__name__: make_copy(module) for module in (os, signal, socket)}
COPIES["os"].supports_follow_symlinks = set()
import_module = builtins.__import__


def import_on_windows(name, globals=None, locals=None, fromlist=(), level=0):
    """Imports for a module of labkit what Windows has of it; the rest imports as ever."""
    if globals and str(globals.get("__name__", "")).partition(".")[0] == "labkit":
        if name in MISSING_MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name in COPIES:
            return COPIES[name]
    return import_module(name, globals, locals, fromlist, level)


builtins.__import__ = import_on_windows
# Other packages would load DLLs: the platform's name is played where none is imported.
sys.platform = os.environ.get("PLAYED_PLATFORM", sys.platform)
