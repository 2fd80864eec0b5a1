"""How a worker ends when it ends by itself."""

import enum


class ExitCode(enum.IntEnum):
    """A worker's exit code, and the launcher's."""

    OK = 0  # told to, or the master is gone, or the vtest client has left
    BUG = 1  # an exception nobody expected; its traceback is in the log
    NO_ENGINE = 2  # the engine does not start on this machine
    PROTOCOL = 3  # the master said what it never may
    CLIENT = 4  # the vtest client broke its protocol, or asked for what it cannot have
    NO_SANDBOX = 5  # the launcher: what workers are to be locked in with is not to be had here
    ABORTED = 134  # abort(3), by a library that does not know how to go on
