"""What vLLM loads into each of its processes (entry point ``vllm.general_plugins``).

vLLM's engine outlives a parent that was killed, with all its memory and a core that it keeps busy.
And its grammars begin at the first id that it samples (``grammar_seam.py``).
"""

import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess

from components.worker.vllm import grammar_seam


def register() -> None:
    """End this process when the one that started it is gone, and teach it to go on with a grammar.

    In the first process the former does nothing.
    """
    grammar_seam.install()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True, name="follow parent").start()


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
