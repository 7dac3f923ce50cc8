"""Run a command that cannot outlive its parent: `python -I -S tether.py PARENT_PID COMMAND…`.

`finally` blocks do not run when a test run is killed with SIGKILL, so each child
asks the kernel to die with its parent and then becomes the command. It does so
itself, after the exec: `preexec_fn` is unsafe in a process with threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked: no signal will come any more
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
