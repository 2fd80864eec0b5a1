"""What a process uses, as the kernel counts it."""

import re
import resource
from dataclasses import dataclass
from pathlib import Path

KIB = 1 << 10

_PAGE = resource.getpagesize()
_FIELD = re.compile(rb"^(VmSwap|VmPTE):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes: resident is what it has in memory; data what RLIMIT_DATA counts, touched or not; swapped what it has in
    swap; tables are the kernel's for its addresses, which no limit of a process counts."""

    resident: int = 0
    data: int = 0
    swapped: int = 0
    tables: int = 0

    def used(self) -> int:
        """What the machine spends on it."""
        return self.resident + self.swapped + self.tables

    @classmethod
    def of(cls, pid: int) -> "ProcessMemory | None":
        """Now (proc_pid_statm(5), proc_pid_status(5)). None if the process is over, or hidden from us."""
        try:
            pages = Path(f"/proc/{pid}/statm").read_bytes().split()
            status = Path(f"/proc/{pid}/status").read_bytes()
            kib = {name: int(value) for name, value in _FIELD.findall(status)}
            return cls(
                int(pages[1]) * _PAGE, int(pages[5]) * _PAGE, kib.get(b"VmSwap", 0) * KIB, kib.get(b"VmPTE", 0) * KIB
            )
        except (OSError, IndexError):
            return None
