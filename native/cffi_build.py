"""What the builders of native extension modules share: flags, the sanitized variant, building in place.

ISOREND_SANITIZE=1 in the environment builds with AddressSanitizer and UndefinedBehaviorSanitizer; such a module loads
only into a process that has libasan preloaded (tests/sanitized.py starts one).
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
SOURCE_DIR = ROOT / "native" / "src"

CFLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-pthread", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-O1"]

# What follows these pragmas is cffi's generated code, which has an unused parameter in every function.
GENERATED = """
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wsign-compare"
"""


def sanitize_flags() -> list[str]:
    """The sanitizers' compiler and linker flags, empty unless ISOREND_SANITIZE=1."""
    return SANITIZE if os.environ.get("ISOREND_SANITIZE") == "1" else []


def pkg_config(*arguments: str) -> list[str]:
    """The words pkg-config prints. Raises CalledProcessError where the package is not installed."""
    return subprocess.run(["pkg-config", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.split()


def headers(native: Path) -> list[str]:
    """All our headers, so that a change of one rebuilds."""
    return [str(native / "src" / path.name) for path in sorted(SOURCE_DIR.glob("*.[hi]*"))]


def build_in_place(builder: FFI, name: str, target: Path | None = None) -> Path:
    """Builds under build/ and moves the module to `target` (default native/). Returns its path."""
    objects = ROOT / "build" / (name + ("-sanitized" if sanitize_flags() else ""))
    objects.mkdir(parents=True, exist_ok=True)
    built = Path(builder.compile(tmpdir=str(objects), verbose=False))
    target = target or ROOT / "native"
    # Never write into a file that a running process has mapped.
    with tempfile.NamedTemporaryFile(dir=target, prefix=f".{name}", delete=False) as temporary:
        shutil.copyfileobj(built.open("rb"), temporary)
    Path(temporary.name).chmod(0o755)
    return Path(temporary.name).replace(target / built.name)
