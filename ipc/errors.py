"""Errors of the channel between the master and its workers."""


class ChannelError(Exception):
    """A channel cannot go on."""


class ChannelClosed(ChannelError):
    """The other end is closed; its process has ended or is about to."""


class ProtocolError(ChannelError):
    """The other end sent what the protocol does not allow. Nothing it sends later can be trusted."""
