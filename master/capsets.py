"""The capability sets that the guest sees (virtio 1.3, 5.7.6.8).

The bytes are a worker's own, less what this device cannot keep. Encoded transfers (VIRGL_CCMD_TRANSFER3D and
COPY_TRANSFER3D inside a command stream) and GL_NVX_gpu_memory_info move bytes between a resource and guest pages behind
the master's back; a worker has no guest pages, so those capability bits are cleared and drivers use TRANSFER_*_3D
instead. ARB_buffer_storage is a mapping that stays: guests make it out of mappable blobs, so there has to be a
host-visible region, and workers have to be able to put a buffer into memory that a guest can map. UNTYPED_RESOURCE says
that a context can make a texture of a blob of guest pages, which takes a driver that imports dma-bufs.
"""

import struct
from dataclasses import dataclass

from master.virtio_gpu import CapsetId

# struct virgl_caps_v2 (virgl_hw.h): offsets in bytes and bits that concern guest pages
_CAPABILITY_BITS = 392
_CAPABILITY_BITS_V2 = 688
_CAP_TRANSFER = 1 << 17
_CAP_COPY_TRANSFER = 1 << 26
_CAP_ARB_BUFFER_STORAGE = 1 << 31
_CAP_V2_UNTYPED_RESOURCE = 1 << 1
_CAP_V2_MEMINFO = 1 << 3
_CAP_V2_COPY_TRANSFER_BOTH_DIRECTIONS = 1 << 7


@dataclass(frozen=True, slots=True)
class Capset:
    """One capability set: id, highest version, its bytes."""

    capset_id: int
    version: int
    data: bytes


def _clear(data: bytearray, offset: int, bits: int) -> None:
    if len(data) >= offset + 4:
        (word,) = struct.unpack_from("<I", data, offset)
        struct.pack_into("<I", data, offset, word & ~bits)


def for_guest(capset: Capset, *, mapped_buffers: bool, guest_dmabufs: bool) -> Capset:
    """The capset as the guest may see it. mapped_buffers: a guest can map buffers for good. guest_dmabufs: workers
    import its own pages."""
    if capset.capset_id != CapsetId.VIRGL2:
        return capset
    bits = _CAP_TRANSFER | _CAP_COPY_TRANSFER
    bits_v2 = _CAP_V2_MEMINFO | _CAP_V2_COPY_TRANSFER_BOTH_DIRECTIONS
    if not mapped_buffers:
        bits |= _CAP_ARB_BUFFER_STORAGE
    if not guest_dmabufs:
        bits_v2 |= _CAP_V2_UNTYPED_RESOURCE
    data = bytearray(capset.data)
    _clear(data, _CAPABILITY_BITS, bits)
    _clear(data, _CAPABILITY_BITS_V2, bits_v2)
    return Capset(capset.capset_id, capset.version, bytes(data))
