"""What `isorend status` shows of a context."""

import time
from typing import Literal

from master.context import Context
from master.status import ContextStatus


def context_status(context: Context) -> ContextStatus:
    """A context now."""
    worker = context.worker
    state: Literal["starting", "running", "lost", "ending"] = "running"
    if context.lost or worker.dead:
        state = "lost"
    elif context.destroyed:
        state = "ending"
    elif not worker.serving:
        state = "starting"
    progress = worker.progress()
    worker.sample_memory()
    return ContextStatus(
        ctx_id=context.ctx_id,
        program=context.name,
        pid=worker.pid,
        state=state,
        fences=progress.waiting if progress else 0,
        queued=progress.backlog if progress else 0,
        submits=progress.submits if progress else 0,
        submit_bytes=progress.submit_bytes if progress else 0,
        resources=len(context.resources),
        resource_bytes=context.resource_bytes,
        memory_bytes=0 if worker.dead else worker.memory.resident,
        seconds=time.monotonic() - context.since,
    )
