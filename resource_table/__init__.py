"""The table of resources: resid -> {fd, iov, v1}, and guest memory.

A resource is what contexts share; it is no object of any driver. It has

- `fd`: its storage as a file descriptor, None until one is attached: allocated here, or sent by a worker whose object
  it was;
- `iov`: the guest's pages behind it (native.guest_memory.Backing), None until RESOURCE_ATTACH_BACKING;
- `v1`: the arguments of RESOURCE_CREATE_3D, for resources made by that command and for no others.

Driver objects live in workers, one for each context that the resource is attached to. Nothing here knows of workers,
virtqueues or wire formats.
"""

from resource_table.resource import Image, Policy, Resource
from resource_table.shadow import Shadow
from resource_table.table import (
    DuplicateResource,
    InvalidResource,
    OutOfMemory,
    ResourceTable,
    TableError,
    UnknownResource,
)

__all__ = [
    "DuplicateResource",
    "Image",
    "InvalidResource",
    "OutOfMemory",
    "Policy",
    "Resource",
    "ResourceTable",
    "Shadow",
    "TableError",
    "UnknownResource",
]
