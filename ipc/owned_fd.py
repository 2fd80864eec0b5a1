"""OwnedFd lives in native, where the resource table finds it too; here it is part of the channel's language."""

from native.owned_fd import OwnedFd

__all__ = ["OwnedFd"]
