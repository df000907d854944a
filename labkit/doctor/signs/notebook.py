"""Signs of JupyterLab and its kernels."""

from __future__ import annotations

from labkit.doctor.distribution import Fix
from labkit.doctor.signs.sign import Sign

NOTEBOOK_SIGNS = (
    Sign(
        "host-not-allowed",
        (r"Blocking request with non-local 'Host'",),
        "the page was opened by a name or address that the lab does not listen for",
        Fix(
            "make down && make up BIND=0.0.0.0   # opens it to the network; else use an SSH tunnel"
        ),
    ),
    Sign(
        "stale-cookie",
        (r"'_xsrf' argument missing from", r"XSRF cookie does not match"),
        "the browser holds a cookie of another Jupyter that was on this address",
        Fix("make status   # open the URL it prints in a private window, or clear the cookies"),
        "likely",
    ),
    Sign(
        "kernel-died",
        (
            r"The kernel appears to have died",
            r"Kernel died before replying to kernel_info",
            r"AsyncIOLoopKernelRestarter: restarting kernel",
            r"DeadKernelError",
        ),
        "the kernel's process was ended: mostly by the kernel of the system, as memory ran out",
        Fix("sudo dmesg | grep -i 'killed process'   # says so where it was memory"),
        "possible",
    ),
    Sign(
        "class-of-the-notebook",
        (r"Can't get attribute '\w+' on <module '__main__'",),
        "a spawned worker cannot see what was defined in a cell",
        Fix("put the class or function into a .py file and import it, or use num_workers=0"),
        "likely",
        brings=("worker-exited",),
    ),
)
