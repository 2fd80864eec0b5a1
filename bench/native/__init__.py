"""The bench's C: a virtqueue driver that costs next to nothing, and what it is held against.

`load()` builds it when it is first wanted, into build/bench.
"""

from bench.native.build import load

__all__ = ["load"]
