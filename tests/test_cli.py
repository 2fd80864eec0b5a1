"""The command line: what it hands on, what it refuses and how it says so."""

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from master import cli
from master.listener import Listener, ListenError, connection_from_fd
from master.options import ServeOptions

ROOT = Path(__file__).resolve().parent.parent
SOCKET = "--socket-path=/tmp/isorend-test.sock"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServeOptions]:
    """What the service was asked to do; it ends with exit code 7."""
    asked: list[ServeOptions] = []

    def serve(options: ServeOptions) -> int:
        asked.append(options)
        return 7

    service = ModuleType("master.service")
    vars(service)["serve"] = serve
    monkeypatch.setitem(sys.modules, "master.service", service)
    monkeypatch.setattr(cli, "set_up_logging", lambda level: None)
    return asked


def run_program(*arguments: str, function: str = "main") -> subprocess.CompletedProcess[str]:
    """In a process of its own, as it is installed."""
    code = f"import sys; from master.cli import {function} as main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


# What is handed on


def test_the_defaults(served: list[ServeOptions]) -> None:
    assert cli.main(["serve", SOCKET]) == 7
    (options,) = served
    assert options == ServeOptions(
        socket_path=Path("/tmp/isorend-test.sock"),
        fd=None,
        render_node=None,
        engine="virgl",
        keep_listening=False,
        spares=2,
        hang_timeout_s=10.0,
        size=(1280, 800),
        log_level="INFO",
    )


@pytest.mark.parametrize("program", [lambda arguments: cli.main(["serve", *arguments]), cli.vhost_user_gpu_main])
def test_every_option_by_either_program(served: list[ServeOptions], program: object) -> None:
    assert callable(program)
    arguments = [
        SOCKET,
        "--virgl",
        "--engine=null",
        "--render-node=/dev/null",
        "--keep-listening",
        "--spares=0",
        "--hang-timeout=2.5",
        "--size=1920x1080",
        "--log-level=debug",
    ]
    assert program(arguments) == 7
    (options,) = served
    assert options == ServeOptions(
        socket_path=Path("/tmp/isorend-test.sock"),
        engine="null",
        render_node=Path("/dev/null"),
        keep_listening=True,
        spares=0,
        hang_timeout_s=2.5,
        size=(1920, 1080),
        log_level="DEBUG",
    )


def test_an_inherited_socket(served: list[ServeOptions]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        assert cli.vhost_user_gpu_main([f"--fd={theirs.fileno()}"]) == 7
        assert served[0].fd == theirs.fileno()
        ours.send(b"still open")
        assert theirs.recv(100) == b"still open"


# What is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["render"], "invalid choice: 'render'"),
        (["serve"], "--socket-path --fd is required"),
        (["serve", SOCKET, "--fd=0"], "not an open socket"),
        (["serve", "--fd=-1"], "not a number from 0"),
        (["serve", "--fd=x"], "'x' is not a number"),
        (["serve", "--fd=99999"], "descriptor 99999 is not an open socket"),
        (["serve", "--socket-path="], "empty path"),
        (["serve", "--socket-path=/tmp/" + "x" * 200], "too long: 205 bytes"),
        (["serve", "--socket-path=/no/such/place"], "no such directory for the socket: /no/such"),
        (["serve", SOCKET, "--render-node=/no/such/node"], "/no/such/node: No such file"),
        (["serve", SOCKET, "--render-node=/etc/passwd"], "not a device node"),
        (["serve", SOCKET, "--engine=venus"], "invalid choice: 'venus'"),
        (["serve", SOCKET, "--spares=65"], "'65' is not a number from 0 to 64"),
        (["serve", SOCKET, "--spares=1.5"], "'1.5' is not a number"),
        (["serve", SOCKET, "--hang-timeout=0"], "'0' is not a number from 0.1 to 3600"),
        (["serve", SOCKET, "--hang-timeout=nan"], "'nan' is not a number"),
        (["serve", SOCKET, "--size=1280"], "is not WxH"),
        (["serve", SOCKET, "--size=1280x800x3"], "is not WxH"),
        (["serve", SOCKET, "--size=15x800"], "sides of 16 to 16384"),
        (["serve", SOCKET, "--log-level=loud"], "invalid choice: 'loud'"),
        (["serve", SOCKET, "--keep"], "unrecognized arguments: --keep"),
        (["serve", SOCKET, "--two\nlines"], "unrecognized arguments: --two lines"),
        (["serve", SOCKET, "more"], "unrecognized arguments: more"),
        (["descriptor", "--binary=isorend"], "not an absolute path"),
    ],
)
def test_wrong_arguments_get_one_line(
    served: list[ServeOptions], capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("isorend")
    assert words in output.err
    assert "--help" in output.err
    assert served == []


def test_options_that_contradict_each_other(served: list[ServeOptions], capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        for arguments in (["--keep-listening"], [SOCKET]):
            with pytest.raises(SystemExit) as ended:
                cli.vhost_user_gpu_main([f"--fd={theirs.fileno()}", *arguments])
            assert ended.value.code == 2
            assert capsys.readouterr().err.count("\n") == 1
    assert served == []


def test_a_socket_that_cannot_be_had_is_one_line_too(
    served: list[ServeOptions], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(_options: ServeOptions) -> int:
        raise ListenError("/tmp/x is in use\nby another process")

    vars(sys.modules["master.service"])["serve"] = serve
    assert cli.main(["serve", SOCKET]) == 1
    assert capsys.readouterr().err == "isorend: /tmp/x is in use\\x0aby another process\n"


# What is told


@pytest.mark.parametrize(
    "arguments",
    [["--print-capabilities"], [SOCKET, "--print-capabilities", "--no-such"], ["--print-capabilities", "--fd=x"]],
)
def test_capabilities(arguments: list[str]) -> None:
    program = run_program(*arguments, function="vhost_user_gpu_main")
    assert (program.returncode, program.stderr) == (0, "")
    assert json.loads(program.stdout) == {"type": "gpu", "features": ["render-node", "virgl"]}
    assert run_program("serve", *arguments).stdout == program.stdout


def test_the_descriptor() -> None:
    program = run_program("descriptor", "--binary=/opt/bin/isorend-vhost-user-gpu")
    assert program.returncode == 0
    descriptor = json.loads(program.stdout)
    assert descriptor["type"] == "gpu"
    assert descriptor["binary"] == "/opt/bin/isorend-vhost-user-gpu"
    assert set(descriptor) == {"description", "type", "binary"}


def test_the_descriptor_finds_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/nowhere/isorend"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["descriptor"]) == 1
    assert "is not installed" in capsys.readouterr().err
    program = tmp_path / "isorend-vhost-user-gpu"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert cli.main(["descriptor"]) == 0
    assert json.loads(capsys.readouterr().out)["binary"] == str(program)


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["descriptor", "--help"]])
def test_help(arguments: list[str]) -> None:
    program = run_program(*arguments)
    assert (program.returncode, program.stderr) == (0, "")
    assert "example" in program.stdout
    assert "None" not in program.stdout and "%(" not in program.stdout
    assert max(len(line) for line in program.stdout.splitlines()) <= 120


def test_version() -> None:
    for function in ("main", "vhost_user_gpu_main"):
        program = run_program("--version", function=function)
        assert program.returncode == 0
        assert program.stdout.startswith("isorend ")


# Commands of other packages


class Extra:
    name = "extra"
    help = "something more"

    def configure(self, parser: object) -> None:
        vars(self)["parser"] = parser

    def run(self, args: object) -> int:
        return 5


EXTRA = Extra()


def test_commands_come_from_entry_points(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [
        EntryPoint("extra", "tests.test_cli:EXTRA", cli.COMMANDS_GROUP),
        EntryPoint("lost", "no_such_package:COMMAND", cli.COMMANDS_GROUP),
        EntryPoint("serve", "tests.test_cli:EXTRA", cli.COMMANDS_GROUP),
    ]
    monkeypatch.setattr(cli, "entry_points", lambda group: entries if group == "isorend.commands" else [])
    assert [command.name for command in cli.find_commands()] == ["serve", "descriptor", "extra", "lost"]
    assert isinstance(cli.find_commands()[0], cli.ServeCommand)
    assert cli.main(["extra"]) == 5
    assert cli.main(["lost", "--with", "arguments"]) == 1
    assert "no_such_package" in capsys.readouterr().err


# The listening socket


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gpu.sock"


def test_listening(path: Path) -> None:
    before = os.umask(0)
    try:
        with Listener(path) as listener:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with pytest.raises(BlockingIOError):
                listener.accept()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                with listener.accept() as connection:
                    connection.send(b"hello")
                    assert client.recv(10) == b"hello"
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
        stale.listen()
    assert path.exists()
    with Listener(path) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        listener.accept().close()


def test_a_live_socket_is_left_alone(path: Path) -> None:
    with Listener(path) as first:
        with pytest.raises(ListenError, match="in use"):
            Listener(path)
        with pytest.raises(BlockingIOError):
            first.accept()  # it was not even connected to
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            first.accept().close()


@pytest.mark.parametrize("content", ["file", "directory", "link"])
def test_what_is_no_socket_is_left_alone(path: Path, content: str) -> None:
    if content == "file":
        path.write_text("precious")
    elif content == "directory":
        path.mkdir()
    else:
        path.symlink_to(path.parent / "precious")
    with pytest.raises(ListenError, match="not a socket"):
        Listener(path)
    assert os.path.lexists(path)


def test_a_socket_that_was_replaced_is_not_removed(path: Path) -> None:
    listener = Listener(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listener.close()
        listener.close()
        assert path.exists()


def test_the_longest_path(tmp_path: Path) -> None:
    room = 107 - len(os.fsencode(tmp_path)) - 1
    if room < 1:
        pytest.skip(f"the temporary directory's own name is too long: {tmp_path}")
    Listener(tmp_path / ("x" * room)).close()
    with pytest.raises(ListenError, match="too long: 108 bytes"):
        Listener(tmp_path / ("x" * (room + 1)))


@pytest.fixture
def unix_listener(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


def test_descriptors_that_are_no_connection(unix_listener: socket.socket) -> None:
    datagram, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    read_end, write_end = os.pipe()
    with datagram, other, socket.socket() as internet:
        for fd, words in (
            (unix_listener.fileno(), "listening"),
            (datagram.fileno(), "not a Unix stream"),
            (internet.fileno(), "not a Unix stream"),
            (read_end, "not an open socket"),
        ):
            with pytest.raises(ListenError, match=words):
                connection_from_fd(fd)
            os.fstat(fd)  # it is still the caller's
    os.close(read_end)
    os.close(write_end)
