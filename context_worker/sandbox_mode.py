"""How workers are locked in."""

from enum import StrEnum


class SandboxMode(StrEnum):
    """The launcher's --sandbox, and `isorend serve`'s."""

    ENFORCE = "enforce"  # what cannot be had is a reason not to start; what is forbidden ends the worker
    AUDIT = "audit"  # what can be had is; a forbidden system call is told and done
    OFF = "off"  # workers may do what the service may
