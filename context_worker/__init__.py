"""A context worker: one process that renders for one guest context.

`launcher` is the process all workers are forked from, before any driver is loaded. `worker` is the way of one worker
from the fork to its end, `lockdown` what it gives up on that way. `engine` is what a worker asks of its renderer,
`virgl` and `null` are such renderers. `egl` is the display that GL needs, `egl_probe` what it can do, `egl_images` the
memory that it shares. `title` is how a worker names itself to people.

Everything here sees what the master handed over and no more: it may import ipc and native, never master or
resource_table.
"""
