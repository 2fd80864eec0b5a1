"""What can go wrong between a service and those who watch it; the texts are for the user."""

from master.listener import ListenError


class DirectoryError(ListenError):
    """There is no place for a service's sockets."""


class NameInUse(DirectoryError):
    """Another service has that name."""


class ControlError(Exception):
    """A service did not do what it was asked for, or cannot be reached."""
