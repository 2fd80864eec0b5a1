"""What a transport needs to know of something that draws."""

from collections.abc import Callable, Sequence
from typing import Protocol

from tests.fake_vmm.virgl.resources import Resource, Upload


class Scene(Protocol):
    """A guest program: resources, data for them, and one command stream per frame.

    The order of calls: ``resources`` once, then ``uploads`` and ``setup``, then ``frame`` for every frame.
    Streams depend on their arguments alone: the same time and index give the same bytes.
    """

    @property
    def name(self) -> str:
        """Name of the program, as a guest would give it in CTX_CREATE's debug_name."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture, in pixels."""

    @property
    def target(self) -> Resource:
        """The colour resource that holds the picture, its first row on top. Only after resources()."""

    def resources(self, alloc_resid: Callable[[], int]) -> Sequence[Resource]:
        """Every resource the scene needs, with ids from ``alloc_resid``; all must have a backing and be attached."""

    def uploads(self) -> Sequence[Upload]:
        """What must be transferred to the host before ``setup`` is submitted."""

    def setup(self) -> bytes:
        """The stream that creates and binds the scene's objects; submitted once."""

    def frame(self, t_seconds: float, index: int) -> bytes:
        """The stream that draws the picture of time ``t_seconds``; ``index`` counts frames."""
