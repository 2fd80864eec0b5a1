"""`isorend vtest`: the command line of the vtest service."""

import argparse
from typing import Final

from master.arguments import (
    add_control,
    add_log_level,
    add_render_node,
    add_sandbox,
    add_shader_cache,
    add_spares,
    add_strikes,
    listening_fd,
    number,
    socket_mode,
    socket_owner,
    socket_path,
)
from master.limits import Limits
from master.listener import OWNER_ONLY
from master.logging_setup import set_up_logging
from master.options import DEFAULT_MAX_CLIENTS, VTEST_ENGINES, VtestOptions

MAX_CLIENTS: Final = 1024

_EPILOG: Final = """\
who may connect:
  The user that the service runs as, root, and the socket's owner. If --socket-mode lets the group or others write,
  whoever the file's mode lets connect.

examples:
  {prog} --socket-path=/run/user/1000/vtest.sock
      Serve programs of the same user. They find it by their environment:
        GALLIUM_DRIVER=virpipe LIBGL_ALWAYS_SOFTWARE=1 VTEST_SOCKET_NAME=/run/user/1000/vtest.sock glxgears
      Mesa before 23.1 does not know VTEST_SOCKET_NAME: its programs look at /tmp/.virgl_test alone.
  {prog} --socket-path=/run/isorend/vtest.sock --socket-owner=:render --socket-mode=660
      Serve everybody in the group render.
  {prog} --fd=3
      Serve on the listening socket that systemd passes to a socket-activated service.
"""


class VtestCommand:
    """`isorend vtest`."""

    name = "vtest"
    help = "serve programs of this machine and its containers as their GPU"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        parser.description = "A GPU for programs by the vtest protocol. Every client renders in a process of its own."
        parser.epilog = _EPILOG.format(prog=parser.prog)
        where = parser.add_argument_group("the clients (--socket-path or --fd)")
        either = where.add_mutually_exclusive_group(required=True)
        either.add_argument("--socket-path", metavar="PATH", type=socket_path, help="listen on this Unix socket")
        either.add_argument(
            "--fd", metavar="N", type=listening_fd, help="use the listening Unix socket inherited as descriptor N"
        )
        where.add_argument(
            "--socket-mode", metavar="OCTAL", type=socket_mode, help=f"permissions of the socket ({OWNER_ONLY:o})"
        )
        where.add_argument(
            "--socket-owner", metavar="USER[:GROUP]", type=socket_owner, help="whose the socket is (the service's)"
        )
        where.add_argument(
            "--max-clients",
            metavar="N",
            type=number(int, 1, MAX_CLIENTS),
            default=DEFAULT_MAX_CLIENTS,
            help="clients served at a time; more are refused (%(default)s)",
        )
        gpu = parser.add_argument_group("what renders")
        add_render_node(gpu)
        gpu.add_argument("--engine", choices=VTEST_ENGINES, default="virgl", help="what renders (%(default)s)")
        add_shader_cache(gpu)
        add_spares(gpu, "clients")
        isolation = parser.add_argument_group("what clients may do")
        add_sandbox(isolation)
        add_strikes(isolation)
        add_control(parser)
        add_log_level(parser)

    def run(self, args: argparse.Namespace) -> int:
        if args.fd is not None:
            for option, value in (("--socket-mode", args.socket_mode), ("--socket-owner", args.socket_owner)):
                if value is not None:
                    self._parser.error(f"{option} has no meaning with --fd")
        options = VtestOptions(
            socket_path=args.socket_path,
            fd=args.fd,
            socket_mode=OWNER_ONLY if args.socket_mode is None else args.socket_mode,
            socket_owner=args.socket_owner,
            max_clients=args.max_clients,
            render_node=args.render_node,
            shader_cache=args.shader_cache,
            engine=args.engine,
            spares=args.spares,
            sandbox=args.sandbox,
            limits=Limits(context_memory=args.max_memory),
            strikes=args.strikes,
            name=args.name,
            control=args.control,
            log_level=args.log_level.upper(),
        )
        set_up_logging(options.log_level)
        from master.vtest_service import serve_vtest

        return serve_vtest(options)
