"""Numbers of the virtio GPU device: feature bits, command and response types, formats, flags, sizes.

Sources: virtio 1.3 section 5.7 "GPU Device" and linux/virtio_gpu.h, whose names are kept without their VIRTIO_GPU_
prefix.
"""

from enum import IntEnum, IntFlag
from typing import Final

DEVICE_ID: Final = 16
MAX_SCANOUTS: Final = 16
CONTROL_QUEUE: Final = 0
CURSOR_QUEUE: Final = 1
NUM_QUEUES: Final = 2
CURSOR_SIZE: Final = 64  # pixels on a side; the only cursor size that the device and its drivers know
EDID_MAX_BYTES: Final = 1024
DEBUG_NAME_BYTES: Final = 64
UUID_BYTES: Final = 16
CONTEXT_INIT_CAPSET_ID_MASK: Final = 0xFF
RESOURCE_FLAG_Y_0_TOP: Final = 1 << 0


class Feature(IntFlag):
    """Device feature bits, as masks."""

    VIRGL = 1 << 0
    EDID = 1 << 1
    RESOURCE_UUID = 1 << 2
    RESOURCE_BLOB = 1 << 3
    CONTEXT_INIT = 1 << 4
    BLOB_ALIGNMENT = 1 << 5


class RingFeature(IntFlag):
    """Feature bits of the transport that concern a split-ring device (virtio 1.3 section 6), as masks."""

    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    RING_RESET = 1 << 40


class CommandType(IntEnum):
    """enum virtio_gpu_ctrl_type, the commands."""

    GET_DISPLAY_INFO = 0x0100
    RESOURCE_CREATE_2D = 0x0101
    RESOURCE_UNREF = 0x0102
    SET_SCANOUT = 0x0103
    RESOURCE_FLUSH = 0x0104
    TRANSFER_TO_HOST_2D = 0x0105
    RESOURCE_ATTACH_BACKING = 0x0106
    RESOURCE_DETACH_BACKING = 0x0107
    GET_CAPSET_INFO = 0x0108
    GET_CAPSET = 0x0109
    GET_EDID = 0x010A
    RESOURCE_ASSIGN_UUID = 0x010B
    RESOURCE_CREATE_BLOB = 0x010C
    SET_SCANOUT_BLOB = 0x010D

    CTX_CREATE = 0x0200
    CTX_DESTROY = 0x0201
    CTX_ATTACH_RESOURCE = 0x0202
    CTX_DETACH_RESOURCE = 0x0203
    RESOURCE_CREATE_3D = 0x0204
    TRANSFER_TO_HOST_3D = 0x0205
    TRANSFER_FROM_HOST_3D = 0x0206
    SUBMIT_3D = 0x0207
    RESOURCE_MAP_BLOB = 0x0208
    RESOURCE_UNMAP_BLOB = 0x0209

    UPDATE_CURSOR = 0x0300
    MOVE_CURSOR = 0x0301


class ResponseType(IntEnum):
    """enum virtio_gpu_ctrl_type, the responses."""

    OK_NODATA = 0x1100
    OK_DISPLAY_INFO = 0x1101
    OK_CAPSET_INFO = 0x1102
    OK_CAPSET = 0x1103
    OK_EDID = 0x1104
    OK_RESOURCE_UUID = 0x1105
    OK_MAP_INFO = 0x1106

    ERR_UNSPEC = 0x1200
    ERR_OUT_OF_MEMORY = 0x1201
    ERR_INVALID_SCANOUT_ID = 0x1202
    ERR_INVALID_RESOURCE_ID = 0x1203
    ERR_INVALID_CONTEXT_ID = 0x1204
    ERR_INVALID_PARAMETER = 0x1205


class HeaderFlag(IntFlag):
    """flags of struct virtio_gpu_ctrl_hdr."""

    FENCE = 1 << 0
    INFO_RING_IDX = 1 << 1


class Format(IntEnum):
    """enum virtio_gpu_formats: what RESOURCE_CREATE_2D may ask for. Four bytes a pixel, named in memory order."""

    B8G8R8A8_UNORM = 1
    B8G8R8X8_UNORM = 2
    A8R8G8B8_UNORM = 3
    X8R8G8B8_UNORM = 4
    R8G8B8A8_UNORM = 67
    X8B8G8R8_UNORM = 68
    A8B8G8R8_UNORM = 121
    R8G8B8X8_UNORM = 134


class CapsetId(IntEnum):
    """Capability set ids."""

    VIRGL = 1
    VIRGL2 = 2
    VENUS = 4
    CROSS_DOMAIN = 5


class Event(IntFlag):
    """events_read and events_clear of the configuration space."""

    DISPLAY = 1 << 0


class BlobMem(IntEnum):
    """blob_mem of RESOURCE_CREATE_BLOB."""

    GUEST = 1
    HOST3D = 2
    HOST3D_GUEST = 3


class BlobFlag(IntFlag):
    """blob_flags of RESOURCE_CREATE_BLOB. CREATE_GUEST_HANDLE is not in the spec: crosvm's, behind a switch here."""

    USE_MAPPABLE = 1 << 0
    USE_SHAREABLE = 1 << 1
    USE_CROSS_DEVICE = 1 << 2
    CREATE_GUEST_HANDLE = 1 << 3


class MapInfo(IntEnum):
    """map_info of OK_MAP_INFO: how a guest may cache the memory (VIRTIO_GPU_MAP_CACHE_*)."""

    NONE = 0
    CACHED = 1
    UNCACHED = 2
    WC = 3


SHM_ID_HOST_VISIBLE: Final = 1
