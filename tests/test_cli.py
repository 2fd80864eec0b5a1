"""The command line: what it hands on, what it refuses and how it says so."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from master import cli, vtest_command
from master.listener import ListenError, SocketOwner
from master.options import ServeOptions, VtestOptions
from tests.control_lab import running_control

ROOT = Path(__file__).resolve().parent.parent
SOCKET = "--socket-path=/tmp/isorend-test.sock"
OURS = ["serve", "vtest", "status", "events", "incidents", "release", "kill", "doctor", "descriptor"]


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


@pytest.fixture
def served_by_vtest(monkeypatch: pytest.MonkeyPatch) -> list[VtestOptions]:
    """What the vtest service was asked to do; it ends with exit code 7."""
    asked: list[VtestOptions] = []

    def serve_vtest(options: VtestOptions) -> int:
        asked.append(options)
        return 7

    service = ModuleType("master.vtest_service")
    vars(service)["serve_vtest"] = serve_vtest
    monkeypatch.setitem(sys.modules, "master.vtest_service", service)
    monkeypatch.setattr(vtest_command, "set_up_logging", lambda level: None)
    return asked


@pytest.fixture
def listening_fd(tmp_path: Path) -> Iterator[int]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "vtest.sock"))
        listener.listen()
        yield listener.fileno()


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
        shader_cache=None,
        share_worker=False,
        keep_listening=False,
        spares=2,
        hang_timeout_s=10.0,
        size=(1280, 800),
        outputs=1,
        display_dmabufs=False,
        hostmem=256 << 20,
        sharing="auto",
        guest_handles=False,
        log_level="INFO",
    )


@pytest.mark.parametrize("program", [lambda arguments: cli.main(["serve", *arguments]), cli.vhost_user_gpu_main])
def test_every_option_by_either_program(served: list[ServeOptions], program: object, tmp_path: Path) -> None:
    assert callable(program)
    arguments = [
        SOCKET,
        "--virgl",
        "--engine=null",
        "--render-node=/dev/null",
        f"--shader-cache={tmp_path / 'shaders'}",
        "--share-worker",
        "--keep-listening",
        "--spares=0",
        "--hang-timeout=2.5",
        "--size=1920x1080",
        "--outputs=3",
        "--display-dmabufs",
        "--hostmem=8G",
        "--sharing=mirrored",
        "--guest-handles",
        "--log-level=debug",
    ]
    assert program(arguments) == 7
    (options,) = served
    assert options == ServeOptions(
        socket_path=Path("/tmp/isorend-test.sock"),
        engine="null",
        render_node=Path("/dev/null"),
        shader_cache=tmp_path / "shaders",
        share_worker=True,
        keep_listening=True,
        spares=0,
        hang_timeout_s=2.5,
        size=(1920, 1080),
        outputs=3,
        display_dmabufs=True,
        hostmem=8 << 30,
        sharing="mirrored",
        guest_handles=True,
        log_level="DEBUG",
    )


@pytest.mark.parametrize(("text", "nbytes"), [("0", 0), ("1M", 1 << 20), ("1073741824", 1 << 30), ("256G", 256 << 30)])
def test_host_visible_memory(served: list[ServeOptions], text: str, nbytes: int) -> None:
    cli.main(["serve", SOCKET, f"--hostmem={text}"])
    assert served[0].hostmem == nbytes


def test_an_inherited_socket(served: list[ServeOptions]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        assert cli.vhost_user_gpu_main([f"--fd={theirs.fileno()}"]) == 7
        assert served[0].fd == theirs.fileno()
        ours.send(b"still open")
        assert theirs.recv(100) == b"still open"


def test_the_defaults_of_vtest(served_by_vtest: list[VtestOptions]) -> None:
    assert cli.main(["vtest", SOCKET]) == 7
    (options,) = served_by_vtest
    assert options == VtestOptions(
        socket_path=Path("/tmp/isorend-test.sock"),
        fd=None,
        socket_mode=0o600,
        socket_owner=None,
        max_clients=64,
        render_node=None,
        engine="virgl",
        shader_cache=None,
        spares=2,
        log_level="INFO",
    )


def test_every_option_of_vtest(served_by_vtest: list[VtestOptions], tmp_path: Path) -> None:
    arguments = [
        "--socket-mode=0660",
        "--socket-owner=root:4711",
        "--max-clients=1",
        "--render-node=/dev/null",
        "--engine=virgl",
        f"--shader-cache={tmp_path}",
        "--spares=0",
        "--log-level=error",
    ]
    assert cli.main(["vtest", SOCKET, *arguments]) == 7
    assert served_by_vtest == [
        VtestOptions(
            socket_path=Path("/tmp/isorend-test.sock"),
            socket_mode=0o660,
            socket_owner=SocketOwner(0, 4711),
            max_clients=1,
            render_node=Path("/dev/null"),
            engine="virgl",
            shader_cache=tmp_path,
            spares=0,
            log_level="ERROR",
        )
    ]


def test_a_shader_cache_that_others_could_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for argument, why in ((tmp_path, "others may write to it"), ("/dev/null", "File exists"), ("/proc/x", "proc/x")):
        result = run_program("vtest", SOCKET, f"--shader-cache={argument}")
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert "--shader-cache" in line and why in line


@pytest.mark.parametrize(
    ("text", "owner"),
    [("root", SocketOwner(0, None)), ("12", SocketOwner(12, None)), (":root", SocketOwner(None, 0))],
)
def test_owners(served_by_vtest: list[VtestOptions], text: str, owner: SocketOwner) -> None:
    cli.main(["vtest", SOCKET, f"--socket-owner={text}"])
    assert served_by_vtest[0].socket_owner == owner


def test_an_inherited_listening_socket(served_by_vtest: list[VtestOptions], listening_fd: int) -> None:
    assert cli.main(["vtest", f"--fd={listening_fd}"]) == 7
    assert served_by_vtest == [VtestOptions(fd=listening_fd)]
    os.fstat(listening_fd)


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
        (["serve", SOCKET, "--outputs=0"], "0"),
        (["serve", SOCKET, "--outputs=17"], "17"),
        (["serve", SOCKET, "--hostmem=300M"], "'300M' is neither 0 nor a power of two from 1M to 256G"),
        (["serve", SOCKET, "--hostmem=512K"], "'512K' is neither 0 nor a power of two"),
        (["serve", SOCKET, "--hostmem=512G"], "'512G' is neither 0 nor a power of two"),
        (["serve", SOCKET, "--hostmem=-1"], "'-1' is neither 0 nor a power of two"),
        (["serve", SOCKET, "--hostmem=1e9"], "'1e9' is neither 0 nor a power of two"),
        (["serve", SOCKET, "--sharing=copied"], "invalid choice: 'copied'"),
        (["serve", SOCKET, "--guest-handles=yes"], "--guest-handles"),
        (["serve", SOCKET, "--log-level=loud"], "invalid choice: 'loud'"),
        (["serve", SOCKET, "--keep"], "unrecognized arguments: --keep"),
        (["serve", SOCKET, "--two\nlines"], "unrecognized arguments: --two lines"),
        (["serve", SOCKET, "more"], "unrecognized arguments: more"),
        (["descriptor", "--binary=isorend"], "not an absolute path"),
        (["vtest"], "--socket-path --fd is required"),
        (["vtest", "--fd=99999"], "descriptor 99999 is not an open socket"),
        (["vtest", SOCKET, "--socket-mode=rw"], "'rw' is not a mode in octal"),
        (["vtest", SOCKET, "--socket-mode=888"], "'888' is not a mode in octal"),
        (["vtest", SOCKET, "--socket-mode=1777"], "'1777' is not a mode in octal from 000 to 777"),
        (["vtest", SOCKET, "--socket-owner="], "'' is not USER, USER:GROUP or :GROUP"),
        (["vtest", SOCKET, "--socket-owner=root:"], "'root:' is not USER"),
        (["vtest", SOCKET, "--socket-owner=no-such-user"], "there is no user 'no-such-user'"),
        (["vtest", SOCKET, "--socket-owner=:no-such-group"], "there is no group 'no-such-group'"),
        (["vtest", SOCKET, "--socket-owner=4294967295"], "there is no user '4294967295'"),
        (["vtest", SOCKET, "--socket-owner=-1"], "there is no user '-1'"),
        (["vtest", SOCKET, "--max-clients=0"], "'0' is not a number from 1 to 1024"),
        (["vtest", SOCKET, "--spares=many"], "'many' is not a number"),
        (["vtest", SOCKET, "--engine=null"], "invalid choice: 'null'"),
        (["vtest", SOCKET, "--keep-listening"], "unrecognized arguments: --keep-listening"),
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


@pytest.mark.parametrize("option", ["--socket-mode=600", "--socket-owner=root", SOCKET])
def test_an_inherited_socket_has_its_own_access(
    served_by_vtest: list[VtestOptions], listening_fd: int, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["vtest", f"--fd={listening_fd}", option])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and option.partition("=")[0] in error
    assert served_by_vtest == []


def test_a_connected_socket_is_not_for_vtest(
    served_by_vtest: list[VtestOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs, pytest.raises(SystemExit) as ended:
        cli.main(["vtest", f"--fd={theirs.fileno()}"])
    assert ended.value.code == 2
    assert "a connected socket, a listening one is expected" in capsys.readouterr().err
    assert served_by_vtest == []


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


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in OURS)])
def test_help(arguments: list[str]) -> None:
    program = run_program(*arguments)
    assert (program.returncode, program.stderr) == (0, "")
    assert "example" in program.stdout
    assert "None" not in program.stdout and "%(" not in program.stdout
    assert max(len(line) for line in program.stdout.splitlines()) <= 120


def test_a_command_loads_what_it_needs_and_no_more(tmp_path: Path) -> None:
    """Whoever watches loads nothing of a service; whoever reads the help, next to nothing."""
    heavy = {"zmq", "rich", "asyncio", "native._dataplane", "native._engines", "master.service"}
    cases = ((["--help"], heavy), (["serve", "--help"], heavy), (["status"], heavy - {"zmq", "rich"}))
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    for arguments, unwanted in cases:
        code = (
            "import sys; from master.cli import main\ntry: main()\nexcept SystemExit: pass\n"
            f"print('loaded:', *({unwanted!r} & sys.modules.keys()))"
        )
        with running_control(tmp_path / "isorend"):
            command = [sys.executable, "-c", code, *arguments]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[-1] == "loaded:"


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
    assert [command.name for command in cli.find_commands()] == [*OURS, "extra", "lost"]
    assert isinstance(cli.find_commands()[0], cli.ServeCommand)
    assert cli.main(["extra"]) == 5
    assert cli.main(["lost", "--with", "arguments"]) == 1
    assert "no_such_package" in capsys.readouterr().err
