"""What can go wrong between the fake VMM and a vhost-user back end.

A silent back end is the built-in TimeoutError, whose text names what was awaited.
"""


class FakeVmmError(Exception):
    """Root of the errors of this package (TimeoutError apart)."""


class Disconnected(FakeVmmError, ConnectionError):
    """The back end closed its end of a socket; the text says which one and what was being done."""


class Refused(FakeVmmError):
    """The back end answered a need_reply message with a non-zero code (vhost-user, REPLY_ACK)."""

    def __init__(self, request: str, code: int) -> None:
        super().__init__(f"the back end refused {request}: code {code}")
        self.request = request
        self.code = code


class ProtocolViolation(FakeVmmError):
    """The back end broke a rule of vhost-user or of the virtqueue (wrong reply, descriptor returned twice, ...)."""


class QueueBroken(FakeVmmError):
    """The back end signalled the error eventfd of a virtqueue (SET_VRING_ERR)."""


class CommandFailed(FakeVmmError):
    """A virtio-gpu command was answered by an error response; `code` is the response type."""

    def __init__(self, command: str, code: int, code_name: str) -> None:
        super().__init__(f"{command} was answered {code_name} ({code:#x})")
        self.command = command
        self.code = code


class OutOfGuestMemory(FakeVmmError, MemoryError):
    """The guest page allocator has no (contiguous) room."""
