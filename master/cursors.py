"""The cursors of scanouts: a picture of 64x64 pixels, and where it is."""

from collections.abc import Callable
from dataclasses import dataclass

from master.display import Display
from master.display_messages import Cursor
from master.picture import cursor_picture
from master.picture_source import PictureSource
from master.virtio_gpu import CURSOR_SIZE
from master.wire import Rect
from resource_table import Resource


@dataclass(eq=False, slots=True)
class CursorState:
    """Where a cursor is, in pixels of its scanout."""

    at: tuple[int, int]


class Cursors:
    """All of a device."""

    def __init__(self, source: PictureSource, display: Callable[[], Display]) -> None:
        """display(): the one there is now."""
        self._source = source
        self._display = display
        self._cursors: dict[int, CursorState] = {}

    def define(self, scanout_id: int, resource: Resource, hot: tuple[int, int], at: tuple[int, int]) -> None:
        """UPDATE_CURSOR with a picture. Raises GuestError if the resource is no cursor."""
        picture = cursor_picture(resource)
        state = self._cursors[scanout_id] = CursorState(at)

        def deliver(pixels: bytearray | None) -> None:
            # A picture that was fetched from a worker may come after the cursor has moved, or been replaced or hidden.
            if pixels is not None and self._cursors.get(scanout_id) is state:
                self._display().define_cursor(scanout_id, *state.at, Cursor(*hot, bytes(pixels)))

        self._source.fetch(resource, picture, Rect(0, 0, CURSOR_SIZE, CURSOR_SIZE), deliver)

    def move(self, scanout_id: int, x: int, y: int) -> None:
        """MOVE_CURSOR."""
        if scanout_id in self._cursors:
            self._cursors[scanout_id].at = (x, y)
        self._display().move_cursor(scanout_id, x, y)

    def hide(self, scanout_id: int, x: int, y: int) -> None:
        """UPDATE_CURSOR with resource 0."""
        self._cursors.pop(scanout_id, None)
        self._display().hide_cursor(scanout_id, x, y)

    def reset(self) -> None:
        """Device reset."""
        self._cursors.clear()
