"""A module in a process that ends when its parent ends: `python -m hyperfuse.flows.leash PARENT MODULE ARGUMENT...`.

The leash is taken before anything heavy is imported: that takes seconds in which a parent may die.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def leashed(module: str, *arguments: str) -> list[str]:
    """The command that runs a module on the leash of this process, or rather of the thread that starts it."""
    return [sys.executable, "-m", "hyperfuse.flows.leash", str(os.getpid()), module, *arguments]


def main(arguments: list[str]) -> int:
    """Run a module on the leash of the process that is given first."""
    parent, module, *more = arguments
    # The kernel ends this process when its parent ends, even if that is killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return 1  # it ended before the kernel was asked
    sys.argv[1:] = more
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
