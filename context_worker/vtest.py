"""A worker's life with one vtest client, from ServeVtest to the end of either.

The session is C's (native/src/vtest_session.h); here is what needs Python: the title, and what the master is told.
"""

import logging
import os
import select
import threading
import time

from context_worker import title
from context_worker.engine import Engine
from context_worker.exit_code import ExitCode
from ipc import messages
from ipc.channel import Channel
from ipc.errors import ChannelClosed, ProtocolError
from ipc.messages import ServeVtest
from native.owned_fd import OwnedFd
from native.vtest import ClientLeft, ClientRefused, EngineFault, MasterGone, MasterSpoke, Named, VtestSession

log = logging.getLogger(__name__)

LEAVE_GRACE = 3.0
"""Seconds that the work of a client that has left may still take."""


def serve_vtest(channel: Channel, engine: Engine) -> ExitCode:
    """Stage SEALED of a vtest worker: wait for the client, then serve it until it leaves."""
    try:
        message, fds = channel.recv()
    except ProtocolError as error:
        log.error("%s", error)
        channel.send(messages.fault(str(error)))
        return ExitCode.PROTOCOL
    assert isinstance(message, ServeVtest)  # the channel accepts no other
    title.set_title(title.vtest_title(message.client_id, message.name, engine.name))
    with fds[0] as client:
        try:
            return _serve_client(channel, engine, message, client)
        except ChannelClosed:
            return ExitCode.OK


def _serve_client(channel: Channel, engine: Engine, message: ServeVtest, client: OwnedFd) -> ExitCode:
    threading.Thread(target=_outlive, args=(channel, client.fd), daemon=True).start()
    session = VtestSession(client.fd, channel.fileno(), engine.native)
    while True:
        event = session.run()
        match event:
            case Named():
                name = title.printable(event.name) or message.name
                title.set_title(title.vtest_title(message.client_id, name, engine.name))
            case EngineFault():
                log.debug("%s (%d errors)", event.text, event.count)
                channel.send(messages.fault(event.text, event.count))
            case ClientLeft():
                log.debug("the client is gone: %s", session.statistics())
                return ExitCode.OK
            case MasterGone():
                log.debug("the master is gone")
                return ExitCode.OK
            case ClientRefused():
                log.debug("%s", event.text)  # for the master to log, once for all workers
                channel.send(messages.fault(event.text))
                return ExitCode.CLIENT
            case MasterSpoke():
                log.error("a message while a client is served")
                return ExitCode.PROTOCOL


def _outlive(channel: Channel, client_fd: int) -> None:
    """Ends the process some time after its client has left, if the session does not: a stream can ask for work without
    end, and while that is under way in the driver nobody looks at the socket. Nobody wants its results any more."""
    poll = select.poll()
    poll.register(client_fd, 0)  # for POLLHUP, which needs no asking; a client that only says no more is still there
    poll.poll()
    time.sleep(LEAVE_GRACE)
    try:
        channel.send(messages.fault(f"its work did not end within {LEAVE_GRACE:g} s after it had left"))
    finally:
        os._exit(ExitCode.CLIENT)
