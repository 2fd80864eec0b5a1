"""A GL desktop in a guest: weston on the virtio-gpu display, its clients, and where on the display their windows are.

Weston puts a new window anywhere, maybe upon another one. It tells where they are (weston-debug's scene graph), so a
client is started again until no window covers the middle of another.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.vm.guest_process import GuestProcess
from tests.vm.picture import Pixels
from tests.vm.qemu import Vm
from tests.vm.waiting import wait_until

BACKGROUND = (0x20, 0x40, 0x60)

# As root without a session, and without keyboard and mouse.
_COMPOSITOR = """
mkdir -p -m 0700 "$XDG_RUNTIME_DIR"
cat >/run/weston.ini <<END
[core]
require-input=false
idle-time=0
shell=desktop
[shell]
animation=none
startup-animation=none
close-animation=none
locking=false
panel-position=none
background-color=0xff204060
END
exec weston -c /run/weston.ini --backend=drm --renderer=gl --debug --socket={name}
"""
_CLIENT = 'until [ -S "$XDG_RUNTIME_DIR/{name}" ]; do sleep 0.2; done; WAYLAND_DISPLAY={name} exec stdbuf -oL {program}'

_PLACE_LIMIT_S = 240.0
_PLACE_POLL_S = 0.5
_MOST_STARTS = 30

_VIEW = re.compile(
    r"^\tView \d+ \(role (?P<role>\S+), PID (?P<pid>\d+),.*\n(?:\t.*\n)*?"
    r"\t\tposition: \((?P<left>-?\d+), (?P<top>-?\d+)\) -> \((?P<right>-?\d+), (?P<bottom>-?\d+)\)\n"
    r"(?P<rest>(?:\t\t.*\n)*)",
    re.MULTILINE,
)


def compositor(name: str) -> str:
    """The script of a GL weston whose socket has this name, which a killed one leaves behind."""
    return _COMPOSITOR.replace("{name}", name)


def client(name: str, program: str) -> str:
    """The script of a client of the weston of that name, once it is there."""
    return _CLIENT.format(name=name, program=program)


class Rectangle(NamedTuple):
    """Pixels of the display; right and bottom are the first ones outside."""

    left: int
    top: int
    right: int
    bottom: int

    def middle(self) -> Rectangle:
        """Half as wide and half as high, around the same centre."""
        quarter_width, quarter_height = (self.right - self.left) // 4, (self.bottom - self.top) // 4
        return Rectangle(
            self.left + quarter_width,
            self.top + quarter_height,
            self.right - quarter_width,
            self.bottom - quarter_height,
        )

    def overlaps(self, other: Rectangle) -> bool:
        """Whether they have a pixel in common."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def of(self, pixels: Pixels) -> Pixels:
        """What a picture shows there."""
        return pixels[max(self.top, 0) : self.bottom, max(self.left, 0) : self.right]


class View(NamedTuple):
    """Something that weston shows: a program's window, or a part of it (wl_subsurface) that has a buffer of its own."""

    pid: int
    role: str
    rectangle: Rectangle
    is_gl: bool
    """Its buffer is GL's, not shared memory."""


def parse_scene(text: str) -> list[View]:
    """The views of a scene graph as weston-debug prints it, the topmost first."""
    return [
        View(
            int(match["pid"]),
            match["role"],
            Rectangle(*(int(match[edge]) for edge in Rectangle._fields)),
            "dmabuf buffer" in match["rest"],
        )
        for match in _VIEW.finditer(text)
    ]


@dataclass(frozen=True)
class Window:
    """A client's window. content: where what it draws by GL is shown; the whole frame if it draws nothing by GL."""

    program: str
    process: GuestProcess
    frame: Rectangle
    content: Rectangle

    def hides(self, other: Window) -> bool:
        """Whether it covers a part of the middle of what the other one shows, if it lies upon that."""
        return self.frame.overlaps(other.content.middle())


@dataclass
class Desktop:
    """A running weston and the clients that were started on it."""

    vm: Vm
    name: str
    weston: GuestProcess
    windows: list[Window] = field(default_factory=list)

    def views(self) -> list[View]:
        """What weston shows now, the topmost first."""
        code, output = self.vm.run(f"WAYLAND_DISPLAY={self.name} exec weston-debug scene-graph")
        assert code == 0, (output, self.weston.output())
        return parse_scene(output)

    def open(self, program: str, *, is_gl: bool) -> Window:
        """Starts a client, again and again until its window neither hides another's middle nor is hidden by one."""
        for _ in range(_MOST_STARTS):
            process = self.vm.spawn(client(self.name, program))
            window = self._window(program, process, is_gl)
            if not any(window.hides(other) or other.hides(window) for other in self.windows):
                self.windows.append(window)
                return window
            process.kill(signal.SIGKILL)
        raise AssertionError(f"no place for {program} among {self.windows} in {_MOST_STARTS} starts")

    def check_running(self) -> None:
        """AssertionError, with what it has written, if weston or a client has ended."""
        for process in (self.weston, *(window.process for window in self.windows)):
            assert process.poll() is None, process.output()

    def close(self) -> None:
        """Ends the clients."""
        while self.windows:
            self.windows.pop().process.kill(signal.SIGKILL)

    def _window(self, program: str, process: GuestProcess, is_gl: bool) -> Window:
        def shown() -> Window | None:
            assert process.poll() is None, process.output()
            mine = [view for view in self.views() if view.pid == process.pid]
            frames = [view.rectangle for view in mine if view.role == "xdg_toplevel"]
            contents = [view.rectangle for view in mine if view.is_gl] if is_gl else frames
            return Window(program, process, frames[0], contents[0]) if frames and contents else None

        window = wait_until(shown, f"a window of {program}", _PLACE_LIMIT_S, _PLACE_POLL_S)
        assert window is not None
        return window


@contextmanager
def running_desktop(vm: Vm, name: str) -> Iterator[Desktop]:
    """A weston that listens by this name; it and its clients end with the context."""
    weston = vm.spawn(compositor(name))
    desktop = Desktop(vm, name, weston)

    def listening() -> bool:
        assert weston.poll() is None, weston.output()
        return vm.run(f'[ -S "$XDG_RUNTIME_DIR/{name}" ]').code == 0

    try:
        wait_until(listening, f"weston's socket {name}", _PLACE_LIMIT_S, _PLACE_POLL_S)
        yield desktop
    finally:
        desktop.close()
        weston.kill(signal.SIGKILL)
