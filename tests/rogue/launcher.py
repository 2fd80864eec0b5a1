"""`python -m tests.rogue.launcher`: context_worker.launcher, whose workers take orders (see tests.rogue)."""

import os
import socket
import sys

from context_worker import launcher
from tests.rogue.hub import HUB_VARIABLE
from tests.rogue.thread import corrupt


def main(arguments: list[str]) -> int:
    """As the real launcher's. It is connected to the hub before it locks itself in."""
    hub = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    hub.connect(os.environ[HUB_VARIABLE])
    corrupt(hub)
    return launcher.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
