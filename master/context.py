"""A guest context as the master sees it."""

import time
from dataclasses import dataclass, field

from master.lane_worker import LaneWorker


@dataclass(eq=False, slots=True)
class Context:
    """A guest context. Once destroyed by the guest it lives on until its worker has ended."""

    ctx_id: int
    name: str
    """debug_name, printable."""
    worker: LaneWorker
    capset_id: int = 0
    """Which command language it speaks (CONTEXT_INIT); 0: none was asked for."""
    since: float = field(default_factory=time.monotonic)
    lost: bool = False
    destroyed: bool = False
    resources: dict[int, int] = field(default_factory=dict)
    """Those attached, with the bytes that they take by their sizes."""
    told: set[int] = field(default_factory=set)
    """Those of them that its worker has heard of."""
    resource_bytes: int = 0
    resources_lost: list[int] = field(default_factory=list)
    """Those whose contents went with the worker."""
    limits_told: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return f"ctx {self.ctx_id} {self.name}"

    @property
    def usable(self) -> bool:
        """Whether its worker will do what it is sent, as far as we know."""
        return not self.lost and not self.worker.dead and self.worker.doom is None
