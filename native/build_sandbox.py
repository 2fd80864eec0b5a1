"""Builds native._sandbox: the system call filter of a worker, and what the launcher does with its listener.

It links libseccomp and nothing else.

setuptools takes `native/build_sandbox.py:ffibuilder` (cffi_modules) and runs it in the project's root;
`python native/build_sandbox.py [DIR]` builds in place, or into DIR.
"""

import sys
from pathlib import Path

from cffi import FFI

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # setuptools runs this file on its own
from native.cffi_build import CFLAGS, GENERATED, ROOT, build_in_place, headers, pkg_config, sanitize_flags


def make_builder(root: Path = Path()) -> FFI:
    """The builder, with its sources named relative to `root` (empty for setuptools, which wants relative paths)."""
    native = root / "native"
    builder = FFI()
    builder.cdef((ROOT / "native" / "sandbox_cdef.h").read_text())
    builder.set_source(
        "native._sandbox",
        '#include "syscall_filter.h"\n' + GENERATED,
        sources=[str(native / "src" / "syscall_filter.c")],
        include_dirs=[str(native / "src")],
        depends=headers(native),
        py_limited_api=False,  # one file name, whether built in place or by setuptools
        extra_compile_args=[*CFLAGS, *sanitize_flags(), *pkg_config("--cflags", "libseccomp")],
        extra_link_args=[*sanitize_flags(), *pkg_config("--libs", "libseccomp")],
    )
    return builder


if __name__ == "__main__":
    build_in_place(make_builder(ROOT), "sandbox", Path(sys.argv[1]) if len(sys.argv) > 1 else None)
else:
    ffibuilder = make_builder()
