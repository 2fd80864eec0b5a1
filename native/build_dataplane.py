"""Builds native._dataplane: virtqueues, guest memory, workers' lanes and the thread between them.

It links no GPU library.

setuptools takes `native/build_dataplane.py:ffibuilder` (cffi_modules) and runs it in the project's root;
`python native/build_dataplane.py [DIR]` builds in place, or into DIR.
"""

import sys
from pathlib import Path

from cffi import FFI

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # setuptools runs this file on its own
from native.cffi_build import CFLAGS, GENERATED, ROOT, build_in_place, headers, sanitize_flags

SOURCES = (
    *("backing.c", "commands.c", "guestmem.c", "idmap.c", "lane.c", "lane_history.c", "lanes.c", "mirror.c"),
    *("order.c", "pictures.c", "pixels.c", "plane.c", "plane_setup.c", "queues.c", "sharing.c", "slots.c"),
    *("texture.c", "virtqueue.c"),
)


def make_builder(root: Path = Path()) -> FFI:
    """The builder, with its sources named relative to `root` (empty for setuptools, which wants relative paths)."""
    native = root / "native"
    builder = FFI()
    builder.cdef((ROOT / "native" / "dataplane_cdef.h").read_text())
    builder.set_source(
        "native._dataplane",
        '#include "plane.h"\n#include "mirror.h"\n#include "pixels.h"\n' + GENERATED,
        sources=[str(native / "src" / name) for name in SOURCES],
        include_dirs=[str(native / "src")],
        depends=headers(native),
        py_limited_api=False,  # one file name, whether built in place or by setuptools
        extra_compile_args=[*CFLAGS, *sanitize_flags()],
        extra_link_args=["-pthread", *sanitize_flags()],
    )
    return builder


if __name__ == "__main__":
    build_in_place(make_builder(ROOT), "dataplane", Path(sys.argv[1]) if len(sys.argv) > 1 else None)
else:
    ffibuilder = make_builder()
