"""How a script ends: its exit code, and one line where Python would show a traceback."""

import os
import sys
from collections.abc import Callable
from io import TextIOWrapper

USER_ERROR, INTERRUPTED, CLOSED_PIPE = 2, 130, 141


class UserError(Exception):
    """The user's to mend, in scripts where a ValueError may be ours and then keeps its traceback."""


def exit_code(work: Callable[[], None], mendable: type[Exception] = ValueError) -> int:
    """Do a script's work. `mendable` is the user's to mend; what the screen cannot show becomes `?`."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        work()
        sys.stdout.flush()
    except mendable as error:
        sys.stderr.write(f"error: {error}\n")
        return USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return CLOSED_PIPE
    return 0
