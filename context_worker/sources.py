"""What Python opens files for late, read early: a sealed worker has no files.

A traceback shows source lines, and formatting one imports what shows them. Both are seen to in the launcher, before the
fork.
"""

import importlib
import linecache
import sys

_OURS = ("context_worker", "ipc", "native")
_LATE_MODULES = (
    "encodings.idna",
    "encodings.latin_1",
    "encodings.unicode_escape",
    "traceback",
    "unicodedata",
    # PyOpenGL imports these with the first call that takes an array, whatever it is.
    "OpenGL.arrays.ctypesarrays",
    "OpenGL.arrays.ctypesparameters",
    "OpenGL.arrays.ctypespointers",
    "OpenGL.arrays.nones",
    "OpenGL.arrays.strings",
)


def keep() -> None:
    """Have the lines of our loaded modules, and the modules that are imported when something goes wrong."""
    for name in _LATE_MODULES:
        importlib.import_module(name)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and file.endswith(".py") and (name.partition(".")[0] in _OURS or name == "__main__"):
            keep_file(file)


def keep_file(file: str) -> None:
    """Have its lines for good: linecache looks whether a file has changed, unless it does not know when it did."""
    if linecache.getlines(file):
        size, _, lines, path = linecache.cache[file]  # type: ignore[misc]  # an entry with lines, not a lazy one
        linecache.cache[file] = (size, None, lines, path)
