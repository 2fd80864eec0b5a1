"""Builds native._engines: the consumer of the command ring and the engines behind it.

This module alone links libvirglrenderer and EGL, so that the master, which uses native._dataplane, never does.

setuptools takes `native/build_engines.py:ffibuilder` (cffi_modules) and runs it in the project's root;
`python native/build_engines.py [DIR]` builds in place, or into DIR.
"""

import sys
from pathlib import Path

from cffi import FFI

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # setuptools runs this file on its own
from native.cffi_build import CFLAGS, GENERATED, ROOT, build_in_place, headers, pkg_config, sanitize_flags

SOURCES = (
    *("engine.c", "consumer.c", "sealed_memory.c", "texture.c", "mirror.c"),
    *("null_engine.c", "null_fences.c", "null_objects.c", "null_vtest.c"),
    *("virgl_engine.c", "virgl_contexts.c", "virgl_egl.c", "virgl_limits.c", "virgl_log.c", "virgl_vtest.c"),
    *("virgl_usage.c", "virgl_blobs.c", "virgl_objects.c", "virgl_pins.c", "virgl_mirror.c"),
    *("virgl_gl_fence.c", "virgl_gl_buffer.c"),
    *("vtest_session.c", "vtest_commands.c", "vtest_commands3.c"),
    *("vtest_stream.c", "vtest_resources.c", "vtest_syncs.c", "idmap.c"),
)
INCLUDES = ("consumer.h", "null_engine.h", "virgl_engine.h", "virgl_limits.h", "virgl_log.h", "vtest_session.h")
PACKAGES = ("virglrenderer", "egl")


def virgl_version() -> int:
    """Version of libvirglrenderer as ISO_VIRGL_VERSION has it: major * 10000 + minor * 100 + micro."""
    (text,) = pkg_config("--modversion", "virglrenderer")
    major, minor, micro = (int(part) for part in text.split("."))
    return major * 10000 + minor * 100 + micro


def make_builder(root: Path = Path()) -> FFI:
    """The builder, with its sources named relative to `root` (empty for setuptools, which wants relative paths)."""
    native = root / "native"
    builder = FFI()
    builder.cdef((ROOT / "native" / "engines_cdef.h").read_text())
    builder.set_source(
        "native._engines",
        "".join(f'#include "{name}"\n' for name in INCLUDES) + GENERATED,
        sources=[str(native / "src" / name) for name in SOURCES],
        include_dirs=[str(native / "src")],
        depends=headers(native),
        py_limited_api=False,  # one file name, whether built in place or by setuptools
        define_macros=[("ISO_VIRGL_VERSION", str(virgl_version()))],
        extra_compile_args=[*CFLAGS, *sanitize_flags(), *pkg_config("--cflags", *PACKAGES)],
        extra_link_args=["-pthread", *sanitize_flags(), *pkg_config("--libs", *PACKAGES)],
    )
    return builder


if __name__ == "__main__":
    build_in_place(make_builder(ROOT), "engines", Path(sys.argv[1]) if len(sys.argv) > 1 else None)
else:
    ffibuilder = make_builder()
