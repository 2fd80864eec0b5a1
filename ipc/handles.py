"""The descriptors that control records speak of, as the worker takes them off its channel."""

from ipc.channel import Channel
from ipc.errors import ProtocolError
from ipc.messages import Handle
from native.owned_fd import OwnedFd


class Handles:
    """Those that wait on a channel, in the order of the records that name them."""

    def __init__(self, channel: Channel) -> None:
        """`channel` accepts messages.TO_LANE_WORKER."""
        self._channel = channel

    def take(self, ticket: int) -> OwnedFd:
        """The descriptor with this ticket, the caller's. Waits for it: its record may have been quicker.

        Raises ProtocolError if the next one has another ticket, ChannelClosed.
        """
        if not ticket:
            raise ProtocolError("a record without the ticket of its descriptor")
        message, (fd,) = self._channel.recv()
        assert isinstance(message, Handle)  # the channel accepts no other
        if message.ticket != ticket:
            fd.close()
            raise ProtocolError(f"descriptor {message.ticket} where {ticket} was due")
        return fd
