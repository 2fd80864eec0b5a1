"""Descriptors on their way to a worker, from a thread that must never wait."""

import errno
from collections import deque

from ipc.channel import Channel
from ipc.messages import Message
from native.owned_fd import OwnedFd

RETRY_S = 0.01
"""Seconds after which to try again while an Outbox is `crowded`."""


class Outbox:
    """Messages with a descriptor each, sent over a channel in their order when it has room for them.

    How many can wait is for the one to bound who puts them in: a guest may not have more under way than it can attach.
    """

    def __init__(self, channel: Channel) -> None:
        """`channel` stays the caller's and is blocking or not."""
        self._channel = channel
        self._waiting: deque[tuple[Message, OwnedFd]] = deque()
        self.crowded = False
        """What held up the last flush() is not this channel: too many descriptors are under way to workers of this user
        (unix(7), ETOOMANYREFS). The socket does not say when that is over, so RETRY_S does."""

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def fileno(self) -> int:
        """The channel's descriptor, to wait until it is writable."""
        return self._channel.fileno()

    def put(self, message: Message, fd: OwnedFd | int) -> None:
        """Add a message with a descriptor, which is lent: a duplicate waits. Raises OSError, with nothing added."""
        self._waiting.append((message, OwnedFd.duplicate(fd)))

    def flush(self) -> bool:
        """Send what can be sent. False if some is left: to be called again when the channel is writable, or after
        RETRY_S if `crowded`.

        Raises ChannelClosed, and OSError for what no waiting helps.
        """
        self.crowded = False
        while self._waiting:
            message, fd = self._waiting[0]
            try:
                self._channel.send_nowait(message, [fd])
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                self.crowded = True
                return False
            self._waiting.popleft()
            fd.close()
        return True

    def close(self) -> None:
        """Close what waits; it is not sent."""
        while self._waiting:
            self._waiting.popleft()[1].close()
