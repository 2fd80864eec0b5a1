"""Builds the bench's C with cffi and loads it."""

from __future__ import annotations

import fcntl
import importlib.machinery
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

from cffi import FFI

from native.cffi_build import CFLAGS, GENERATED, ROOT, build_in_place

_HERE = Path(__file__).resolve().parent
_TARGET = ROOT / "build" / "bench"
_MODULE = "_bench_driver"


def _make_builder() -> FFI:
    builder = FFI()
    builder.cdef((_HERE / "bench_cdef.h").read_text())
    names = ("display_sink", "driver", "echo_device", "yardsticks")
    builder.set_source(
        _MODULE,
        "".join(f'#include "{name}.h"\n' for name in names) + GENERATED,
        sources=[str(_HERE / "src" / f"{name}.c") for name in names],
        include_dirs=[str(_HERE / "src")],
        depends=[str(path) for path in sorted((_HERE / "src").glob("*.h"))],
        py_limited_api=False,
        extra_compile_args=CFLAGS,
    )
    return builder


@cache
def load() -> ModuleType:
    """The extension module, with `ffi` and `lib`; built if it is not there or older than its sources."""
    _TARGET.mkdir(parents=True, exist_ok=True)
    built = _TARGET / f"{_MODULE}{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    sources = [*(_HERE / "src").iterdir(), _HERE / "bench_cdef.h", Path(__file__)]
    with (_TARGET / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists() or built.stat().st_mtime < max(path.stat().st_mtime for path in sources):
            build_in_place(_make_builder(), "bench-objects", _TARGET)
    spec = importlib.util.spec_from_file_location(_MODULE, built)
    if spec is None or spec.loader is None:
        raise ImportError(f"{built} is no extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
