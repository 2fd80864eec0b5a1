"""Building the parts of a lab: each beside its place and renamed into it, so that what is there is whole."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm.debian_root import say


def cache_dir() -> Path:
    """Where labs and Debian roots are kept: $ISOREND_VM_LAB, else isorend/vm-lab in the user's cache."""
    override = os.environ.get("ISOREND_VM_LAB")
    if override:
        return Path(override).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "isorend/vm-lab"


def build_part(place: Path, build: Callable[[Path], None]) -> None:
    """Has `build` fill an empty directory that becomes `place`, unless that is there. The caller holds the lock."""
    if place.is_dir():
        return
    started = time.monotonic()
    say(f"building {place}")
    for abandoned in place.parent.glob(place.name + ".building-*"):
        # A child of the build that was killed may still be writing there; the next build takes what is left.
        shutil.rmtree(abandoned, ignore_errors=True)
    scratch = place.with_name(f"{place.name}.building-{os.getpid()}")
    scratch.mkdir()
    build(scratch)
    scratch.rename(place)
    say(f"built {place} in {time.monotonic() - started:.0f} s")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds off a second builder by a lock file."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is building here; waiting for {path}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
