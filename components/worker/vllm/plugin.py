"""What vLLM loads into each of its processes (entry point ``vllm.general_plugins``).

vLLM's engine outlives a parent that was killed, with all its memory and a core that it keeps busy.
"""

import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess


def register() -> None:
    """End this process when the one that started it is gone. Does nothing in the first one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True, name="follow parent").start()


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
