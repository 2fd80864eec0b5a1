"""Three guest programs that draw lit, animated scenes with virgl commands, for the demo, tests and benches."""

from bench.demo.scenes.knot import KnotScene
from bench.demo.scenes.marbles import MarblesScene
from bench.demo.scenes.sea import SeaScene
from tests.fake_vmm.virgl.scene import Scene

__all__ = ["KnotScene", "MarblesScene", "Scene", "SeaScene", "demo_scenes"]


def demo_scenes(size: tuple[int, int] = (640, 480)) -> list[Scene]:
    """One of each, ready for a context of its own."""
    return [KnotScene(size), MarblesScene(size), SeaScene(size)]
