"""A vtest client in plain sockets: the protocol written a second time, for tests."""

from tests.fake_vtest.client import ConnectionLost, VtestClient, client_pair
from tests.fake_vtest.protocol import Batch, BlobMemory, Box, Command, SyncPoint, Texture

__all__ = [
    "Batch",
    "BlobMemory",
    "Box",
    "Command",
    "ConnectionLost",
    "SyncPoint",
    "Texture",
    "VtestClient",
    "client_pair",
]
