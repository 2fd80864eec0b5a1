"""`python -m tests.hostile.attacker`: context_worker.launcher, whose workers attack (tests.hostile.attempts).

Each worker goes through all the stages that every worker goes through. When it is sealed, and in place of its service,
it takes names of attempts from a socket and tells what came of them. With ATTACK_UNFILTERED set its system call filters
let everything through.
"""

import json
import os
import socket
import sys
from typing import NoReturn

from context_worker import launcher, lockdown, seccomp, worker
from context_worker.engine import Engine
from context_worker.lockdown import Confinement
from context_worker.profiles import DriverProfile
from context_worker.worker import WorkerStart
from ipc.channel import Channel
from native import sandbox
from native.owned_fd import OwnedFd
from native.sandbox import Rule
from tests.hostile.attempts import ATTEMPTS, World

SOCKET, WORLD, UNFILTERED = "ISOREND_ATTACK_SOCKET", "ISOREND_ATTACK_WORLD", "ISOREND_ATTACK_UNFILTERED"


def attack(world: World, hub: int) -> NoReturn:
    """As long as somebody wants to know."""
    while name := os.read(hub, 4096).decode():
        os.write(hub, f"{name}\n{ATTEMPTS[name].action(world)}".encode())
    os._exit(0)


def main(arguments: list[str]) -> int:
    """As the real launcher's."""
    hub = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    hub.connect(os.environ[SOCKET])
    real_run, real_close, real_seal, real_introduce = (
        worker.run,
        lockdown.close_all_but,
        lockdown.seal,
        worker.introduce,
    )
    born: list[WorkerStart] = []

    def run(start: WorkerStart) -> NoReturn:
        born.append(start)
        real_run(start)

    def close_all_but(keep: set[int]) -> None:
        real_close(keep | {hub.fileno()})

    def seal(confinement: Confinement, profile: DriverProfile, reporter: socket.socket) -> None:
        if UNFILTERED not in os.environ:
            real_seal(confinement, profile, reporter)
        else:  # a filter that lets everything through
            names = filter(None, map(sandbox.known_name_of, range(1024)))
            seccomp.hand_over(OwnedFd(sandbox.load_filter([Rule(name) for name in names])), reporter)

    def introduce(channel: Channel, engine: Engine) -> None:
        real_introduce(channel, engine)
        attack(World(start=born[0], hub=hub.fileno(), **json.loads(os.environ[WORLD])), hub.fileno())

    worker.run, lockdown.close_all_but = run, close_all_but
    lockdown.seal, worker.introduce = seal, introduce
    if UNFILTERED in os.environ:
        seccomp.forbid = lambda mode: None
    return launcher.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
