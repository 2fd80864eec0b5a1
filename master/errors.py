"""Errors of the master, split by whose fault they are.

GuestError is the guest's: it is answered in the ring, and nothing else happens. ProtocolError is the front end's: its
connection is closed. HandlerError is a front-end request that the device cannot honour: it becomes a negative
acknowledgement. Everything else that is raised is a bug of ours and is not caught.
"""

from master.virtio_gpu import ResponseType


class GuestError(Exception):
    """A guest command that is answered with an error response.

    response: one of ResponseType's ERR_ members. detail: words for the log; the guest never sees them.
    """

    def __init__(self, response: ResponseType, detail: str = "") -> None:
        super().__init__(f"{response.name}: {detail}" if detail else response.name)
        self.response = response
        self.detail = detail


class ProtocolError(Exception):
    """The peer of a protocol socket (vhost-user or display) broke the protocol. The connection cannot go on."""


class HandlerError(Exception):
    """Raised by a vhost-user handler that cannot do what the front end asked; see vhost_user.VhostUserBackend."""
