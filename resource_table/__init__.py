"""The table of resources: resid -> {fd, iov, v1}, and guest memory.

A resource is what contexts share; it is no object of any driver. It has

- `fd`: its storage as a file descriptor, None until one is attached: allocated here, or sent by a worker whose object
  it was;
- `iov`: the guest's pages behind it (native.guest_memory.Backing), None until RESOURCE_ATTACH_BACKING;
- `v1`: the arguments of RESOURCE_CREATE_3D, for resources made by that command and for no others.

Driver objects live in workers, one for each context that the resource is attached to. Nothing here knows of workers,
virtqueues or wire formats.
"""

from resource_table.errors import DuplicateResource, InvalidResource, OutOfMemory, TableError, UnknownResource
from resource_table.policy import Abilities, Policy, at_creation, when_shared
from resource_table.resource import Blob, Image, Resource
from resource_table.shadow import Shadow
from resource_table.storage import Storage
from resource_table.table import ResourceTable
from resource_table.udmabuf import Udmabuf

__all__ = [
    "Abilities",
    "Blob",
    "DuplicateResource",
    "Image",
    "InvalidResource",
    "OutOfMemory",
    "Policy",
    "Resource",
    "ResourceTable",
    "Shadow",
    "Storage",
    "TableError",
    "Udmabuf",
    "UnknownResource",
    "at_creation",
    "when_shared",
]
