"""Whether the bytes of virgl's capability set 2 can be true (struct virgl_caps_v2, virgl_hw.h)."""

import struct
from typing import Final

V1_BYTES: Final = 308
V2_BYTES: Final = 1376  # of virglrenderer 0.10, the oldest that is supported; it only grows
_MAX_VERSION: Final = 0
_SAMPLER_FORMATS: Final = 4  # struct virgl_supported_format_mask: a bit for each format, 16 words
_RENDER_FORMATS: Final = 68
_GLSL_LEVEL: Final = 264
_B8G8R8A8_UNORM: Final = 1
OLDEST_GLSL: Final = 130  # what Mesa's driver takes for GL 3


def faults_of(data: bytes) -> list[str]:
    """What is wrong with them, in words; nothing if a guest's driver can work with them."""
    if len(data) < V2_BYTES:
        return [f"{len(data)} bytes, at least {V2_BYTES} are expected"]
    faults = []
    if _word(data, _MAX_VERSION) < 2:
        faults.append(f"max_version is {_word(data, _MAX_VERSION)}, not 2")
    for name, offset in (("sampled", _SAMPLER_FORMATS), ("drawn to", _RENDER_FORMATS)):
        if not _word(data, offset) & 1 << _B8G8R8A8_UNORM:
            faults.append(f"B8G8R8A8 cannot be {name}")
    if glsl_level(data) < OLDEST_GLSL:
        faults.append(f"GLSL {glsl_level(data)} is too old")
    return faults


def glsl_level(data: bytes) -> int:
    """Like 330 for GLSL 3.30. The bytes are those of a whole capability set."""
    return _word(data, _GLSL_LEVEL)


def _word(data: bytes, offset: int) -> int:
    (word,) = struct.unpack_from("<I", data, offset)
    return int(word)
