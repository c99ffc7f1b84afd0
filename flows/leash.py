"""The command line in a process that ends when its parent ends: `python -m flows.leash PARENT ARGUMENT...`.

The leash is taken before anything heavy is imported: that takes seconds in which a parent may die.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run the command line on the leash of the process that is given first."""
    parent = int(arguments[0])
    # The kernel ends this process when its parent ends, even if that is killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1  # it ended before the kernel was asked
    from hyperfuse.flows.cli import main as command  # noqa: PLC0415 (see above)

    return command(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
