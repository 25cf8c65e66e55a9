"""Children end with their parent, so that a killed supervisor leaves nothing behind (Linux)."""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent_pid: int = 0) -> bool:
    """Ask the kernel to kill this process when its parent ends.

    Returns False when the parent is already gone (``parent_pid`` given and not ours): then end. The
    kernel watches the parent's *thread* that started us, so a supervisor starts its children from
    its main thread. Elsewhere than on Linux nothing is asked.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        # SIGKILL and not SIGTERM: the bus dies with the supervisor, there is nothing to drain into.
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    return parent_pid in {0, os.getppid()}
