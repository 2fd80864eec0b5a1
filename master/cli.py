"""The command line: `isorend COMMAND ...` and `isorend-vhost-user-gpu`, the program that VMMs start.

`isorend` finds its commands in the entry-point group isorend.commands besides the ones made here, so that packages
which need much more (the demo) can add theirs without being known here.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

from master import capabilities
from master.arguments import (
    absolute_path,
    add_control,
    add_log_level,
    add_render_node,
    add_sandbox,
    add_shader_cache,
    add_spares,
    add_strikes,
    connected_fd,
    hostmem,
    number,
    rate,
    size,
    socket_path,
)
from master.commands.doctor import DoctorCommand
from master.commands.events import EventsCommand
from master.commands.incidents import IncidentsCommand
from master.commands.kill import KillCommand
from master.commands.release import ReleaseCommand
from master.commands.status import StatusCommand
from master.control.errors import ControlError
from master.limits import MIB, Limits
from master.listener import ListenError
from master.logging_setup import printable_line, set_up_logging
from master.options import DEFAULT_HANG_TIMEOUT_S, DEFAULT_HOSTMEM, DEFAULT_SIZE, ENGINES, SHARING, ServeOptions
from master.virtio_gpu import MAX_SCANOUTS
from master.vtest_command import VtestCommand

COMMANDS_GROUP: Final = "isorend.commands"
EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
MAX_HANG_TIMEOUT_S: Final = 3600.0
MAX_CONTEXTS: Final = 1024

_SERVE_EPILOG: Final = """\
examples:
  {prog} --socket-path=/run/user/1000/gpu.sock
      Wait there for a VMM, serve it, end when it leaves. With QEMU:
        qemu-system-x86_64 ... -object memory-backend-memfd,id=ram,size=4G,share=on -machine memory-backend=ram \\
          -chardev socket,id=gpu,path=/run/user/1000/gpu.sock -device vhost-user-gpu-pci,chardev=gpu
  {prog} --fd=5
      Serve the VMM at the other end of an inherited socket, as libvirt starts it.
  {prog} --socket-path=gpu.sock --keep-listening --render-node=/dev/dri/renderD129
      Use the second GPU and serve one VMM after the other.
"""
_MAIN_EPILOG: Final = """\
examples:
  isorend serve --socket-path=/run/user/1000/gpu.sock
  isorend vtest --socket-path=/run/user/1000/vtest.sock
  isorend status --watch
  isorend descriptor | sudo tee /usr/share/qemu/vhost-user/50-isorend-gpu.json

`isorend COMMAND --help` says more about a command.
"""


class Command(Protocol):
    """A subcommand of `isorend`, as packages provide it."""

    name: str
    help: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments. May set parser.epilog and parser.description."""

    def run(self, args: argparse.Namespace) -> int:
        """The exit code."""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Epilogs as they are written; a column wide enough for our options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


class Parser(argparse.ArgumentParser):
    """Errors are one line on stderr and exit code 2; long options cannot be abbreviated."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        self.exit(EXIT_USAGE, f"{self.prog}: {line} (try {self.prog} --help)\n")


class ServeCommand:
    """`isorend serve`, and all of `isorend-vhost-user-gpu`."""

    name = "serve"
    help = "serve a VMM as its GPU"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        parser.description = "A GPU for a virtual machine. Every guest context renders in a process of its own."
        parser.epilog = _SERVE_EPILOG.format(prog=parser.prog)
        _add_vmm_options(parser)
        _add_renderer_options(parser)
        _add_isolation_options(parser)
        add_control(parser)
        parser.add_argument(
            "--print-capabilities", action="store_true", help="print what this program can do as JSON, and end"
        )
        add_log_level(parser)

    def run(self, args: argparse.Namespace) -> int:
        if args.fd is not None and args.keep_listening:
            self._parser.error("--keep-listening has no meaning with --fd")
        options = ServeOptions(
            socket_path=args.socket_path,
            fd=args.fd,
            render_node=args.render_node,
            shader_cache=args.shader_cache,
            share_worker=args.share_worker,
            engine=args.engine,
            keep_listening=args.keep_listening,
            spares=args.spares,
            hang_timeout_s=args.hang_timeout,
            size=args.size,
            outputs=args.outputs,
            display_dmabufs=args.display_dmabufs,
            hostmem=args.hostmem,
            sharing=args.sharing,
            guest_handles=args.guest_handles,
            sandbox=args.sandbox,
            limits=Limits(context_memory=args.max_memory, contexts=args.max_contexts, spawns=args.spawn_rate),
            strikes=args.strikes,
            guest_strikes=args.guest_strikes,
            name=args.name,
            control=args.control,
            log_level=args.log_level.upper(),
        )
        set_up_logging(options.log_level)
        from master.service import serve

        return serve(options)


def _add_vmm_options(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("the VMM (--socket-path or --fd)")
    either = where.add_mutually_exclusive_group(required=True)
    either.add_argument("--socket-path", metavar="PATH", type=socket_path, help="listen on this Unix socket")
    either.add_argument(
        "--fd", metavar="N", type=connected_fd, help="use the connected Unix socket inherited as descriptor N"
    )
    where.add_argument("--keep-listening", action="store_true", help="wait for the next VMM when one leaves")
    where.add_argument(
        "--size",
        metavar="WxH",
        type=size,
        default=DEFAULT_SIZE,
        help=f"display size if the VMM has no display ({DEFAULT_SIZE[0]}x{DEFAULT_SIZE[1]})",
    )
    where.add_argument(
        "--outputs",
        metavar="N",
        type=number(int, 1, MAX_SCANOUTS),
        default=1,
        help=f"displays that the guest has, as many as the VMM's max_outputs, up to {MAX_SCANOUTS} (%(default)s)",
    )
    where.add_argument(
        "--display-dmabufs",
        action="store_true",
        help="hand the VMM's display dma-bufs, not pixels, where there are some: for displays that draw with GL",
    )
    where.add_argument(
        "--hostmem",
        metavar="SIZE",
        type=hostmem,
        default=DEFAULT_HOSTMEM,
        help="room in the guest's address space for memory of the host that it maps, a power of two like 1G; 0 for "
        f"none ({DEFAULT_HOSTMEM // MIB}M)",
    )


def _add_renderer_options(parser: argparse.ArgumentParser) -> None:
    gpu = parser.add_argument_group("what renders")
    add_render_node(gpu)
    gpu.add_argument("--virgl", action="store_true", help="offer 3D by virgl: the default; VMMs give this option")
    gpu.add_argument("--engine", choices=ENGINES, default="virgl", help="null: accept everything, draw nothing")
    add_shader_cache(gpu)
    add_spares(gpu, "contexts")
    gpu.add_argument(
        "--sharing",
        choices=SHARING,
        default="auto",
        help="how contexts share a resource: auto: one memory for all of them where drivers can, else mirrored: each "
        "has a copy, brought up to date where it matters (%(default)s)",
    )
    gpu.add_argument(
        "--guest-handles",
        action="store_true",
        help="let guests make blobs with CREATE_GUEST_HANDLE, which is not in the virtio standard",
    )
    gpu.add_argument(
        "--share-worker",
        action="store_true",
        help="one worker for all contexts, which isolates none from the others: for comparing speed only",
    )


def _add_isolation_options(parser: argparse.ArgumentParser) -> None:
    limits = Limits()
    group = parser.add_argument_group("what contexts may do")
    add_sandbox(group)
    group.add_argument(
        "--max-contexts",
        metavar="N",
        type=number(int, 1, MAX_CONTEXTS),
        default=limits.contexts,
        help="contexts of the guest at a time (%(default)s)",
    )
    group.add_argument(
        "--spawn-rate",
        metavar="N/SECONDS",
        type=rate,
        default=limits.spawns,
        help="contexts that the guest may make in a time (%(default)s)",
    )
    group.add_argument(
        "--hang-timeout",
        metavar="SECONDS",
        type=number(float, 0.1, MAX_HANG_TIMEOUT_S),
        default=DEFAULT_HANG_TIMEOUT_S,
        help="end a context that makes no progress for so long (%(default)g)",
    )
    add_strikes(group)
    group.add_argument(
        "--guest-strikes",
        metavar="N/SECONDS",
        type=rate,
        help="the same for the whole guest, whatever its programs call themselves (never)",
    )


class DescriptorCommand:
    """`isorend descriptor`."""

    name = "descriptor"
    help = "print the file by which libvirt finds this GPU"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        where = f"{capabilities.DESCRIPTOR_DIRECTORY}/{capabilities.DESCRIPTOR_FILE}"
        parser.description = f"Print the vhost-user back-end descriptor. Its place is {where}."
        parser.epilog = f"example:\n  {parser.prog} | sudo tee {where}\n"
        parser.add_argument(
            "--binary",
            metavar="PATH",
            type=absolute_path,
            help=f"where {capabilities.BINARY} is; by default beside this program or found by PATH",
        )

    def run(self, args: argparse.Namespace) -> int:
        binary = args.binary or _find_binary()
        if binary is None:
            _complain("isorend descriptor", f"{capabilities.BINARY} is not installed; say where with --binary")
            return EXIT_FAILURE
        print(capabilities.descriptor_json(binary))
        return 0


class BrokenCommand:
    """An entry point that cannot be loaded: it is listed, and says why when used."""

    def __init__(self, name: str, reason: Exception) -> None:
        self.name = name
        self.help = "not available here"
        self._reason = reason

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.prefix_chars = "\0"  # whatever comes is an argument, so that the reason is told and not a usage error
        parser.add_argument("ignored", nargs="*", help=argparse.SUPPRESS)

    def run(self, args: argparse.Namespace) -> int:
        _complain(f"isorend {self.name}", f"not available: {self._reason}")
        return EXIT_FAILURE


def main(argv: Sequence[str] | None = None) -> int:
    """`isorend`: returns the exit code; SystemExit for help, version and wrong arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == [ServeCommand.name] and "--print-capabilities" in arguments:
        return _print_capabilities()
    parser = Parser(
        prog="isorend",
        description="A GPU for virtual machines and containers that renders every context in a process of its own.",
        epilog=_MAIN_EPILOG,
    )
    _add_version(parser)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, title="commands", parser_class=Parser)
    for command in find_commands():
        subparser = subparsers.add_parser(command.name, help=command.help)
        command.configure(subparser)
        subparser.set_defaults(run=command.run)
    return _run(parser, arguments, None)


def vhost_user_gpu_main(argv: Sequence[str] | None = None) -> int:
    """`isorend-vhost-user-gpu`: the same as `isorend serve`, by the conventions for vhost-user back-end programs."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--print-capabilities" in arguments:
        return _print_capabilities()
    command = ServeCommand()
    parser = Parser(prog=capabilities.BINARY)
    _add_version(parser)
    command.configure(parser)
    return _run(parser, arguments, command.run)


def find_commands() -> list[Command]:
    """Our commands and those of the entry-point group, by name."""
    ours: tuple[Command, ...] = (
        ServeCommand(),
        VtestCommand(),
        StatusCommand(),
        EventsCommand(),
        IncidentsCommand(),
        ReleaseCommand(),
        KillCommand(),
        DoctorCommand(),
        DescriptorCommand(),
    )
    commands = {command.name: command for command in ours}
    for entry in sorted(entry_points(group=COMMANDS_GROUP), key=lambda entry: entry.name):
        try:
            commands.setdefault(entry.name, entry.load())
        except (ImportError, AttributeError) as reason:
            commands.setdefault(entry.name, BrokenCommand(entry.name, reason))
    return list(commands.values())


def _run(parser: Parser, arguments: list[str], run: Callable[[argparse.Namespace], int] | None) -> int:
    args = parser.parse_args(arguments)
    try:
        return (run or args.run)(args)
    except (ListenError, ControlError) as reason:
        _complain(parser.prog, str(reason))
        return EXIT_FAILURE


def _complain(program: str, message: str) -> None:
    print(f"{program}: {printable_line(message)}", file=sys.stderr)


def _print_capabilities() -> int:
    """The conventions: print and end, whatever other options there are."""
    print(capabilities.capabilities_json())
    return 0


def _add_version(parser: Parser) -> None:
    try:
        number = version("isorend")
    except PackageNotFoundError:
        number = "(not installed)"
    parser.add_argument("--version", action="version", version=f"isorend {number}")


def _find_binary() -> str | None:
    beside = Path(sys.argv[0]).resolve().parent / capabilities.BINARY
    found = os.fspath(beside) if beside.is_file() else shutil.which(capabilities.BINARY)
    return os.path.abspath(found) if found else None
