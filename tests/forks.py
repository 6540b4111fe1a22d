"""Forked processes, for tests of what does not live on in them."""

import os
import signal
import traceback
import warnings
from collections.abc import Callable

SOON_S = 20


def in_a_fork(child: Callable[[], None]) -> bool:
    """Whether something passes in a forked process, and before long."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks of processes with threads
        pid = os.fork()
    if not pid:
        signal.alarm(SOON_S)  # ends the child, should it hang
        status = 1
        try:
            child()
            status = 0
        except BaseException:  # noqa: BLE001  whatever it is, it ends here
            traceback.print_exc()
        finally:
            os._exit(status)  # nothing else of the tests runs there
    return os.waitpid(pid, 0)[1] == 0
