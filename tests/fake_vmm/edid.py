"""A small valid EDID (VESA E-EDID 1.4, 128 bytes) for a display of one mode."""

from __future__ import annotations

import struct

_HEADER = bytes.fromhex("00ffffffffffff00")
_CHROMATICITY_SRGB = bytes.fromhex("ee91a3544c99260f5054")
_MILLIMETRES_PER_INCH = 25.4
_DPI = 96


def make_edid(width: int, height: int, *, refresh: int = 60, name: str = "fake VMM") -> bytes:
    """128 bytes with `width` x `height` as preferred timing; both below 4096."""
    if not (0 < width < 4096 and 0 < height < 4096):
        raise ValueError(f"a detailed timing cannot say {width}x{height}")
    edid = bytearray(_HEADER)
    edid += struct.pack(">H", _manufacturer("ISO"))
    edid += struct.pack("<HI", 1, 1)  # product code, serial number
    edid += bytes([1, 2024 - 1990, 1, 4])  # week, year, EDID 1.4
    centimetres = [min(255, round(pixels / _DPI * _MILLIMETRES_PER_INCH / 10)) for pixels in (width, height)]
    edid += bytes([0xA5, *centimetres, 120, 0x06])  # digital 8 bit, size, gamma 2.2, sRGB and preferred timing
    edid += _CHROMATICITY_SRGB
    edid += bytes(3)  # established timings
    edid += b"\x01\x01" * 8  # standard timings: none
    edid += _detailed_timing(width, height, refresh)
    edid += b"\0\0\0\xfc\0" + name.encode("ascii")[:13].ljust(13, b"\n")
    edid += (b"\0\0\0\x10\0" + bytes(13)) * 2  # unused descriptors
    edid += b"\0"  # no extensions
    edid.append(-sum(edid) & 0xFF)
    return bytes(edid)


def _manufacturer(letters: str) -> int:
    first, second, third = (ord(letter) - ord("A") + 1 for letter in letters)
    return first << 10 | second << 5 | third


def _detailed_timing(width: int, height: int, refresh: int) -> bytes:
    """The 18-byte descriptor, with blanking of about a quarter and a tenth as in common timings."""
    h_blank, h_front, h_sync = width * 35 // 100, width * 25 // 100 & 0x3FF, max(1, width * 3 // 100)
    v_blank, v_front, v_sync = max(4, height * 35 // 1000), min(5, 1 + height // 400), 3
    clock = (width + h_blank) * (height + v_blank) * refresh // 10000  # in 10 kHz
    size = [round(pixels / _DPI * _MILLIMETRES_PER_INCH) & 0xFFF for pixels in (width, height)]
    return struct.pack(
        "<H16B",
        min(clock, 0xFFFF),
        width & 0xFF, h_blank & 0xFF, (width >> 8) << 4 | h_blank >> 8,
        height & 0xFF, v_blank & 0xFF, (height >> 8) << 4 | v_blank >> 8,
        h_front & 0xFF, h_sync & 0xFF, (v_front & 0xF) << 4 | v_sync & 0xF,
        (h_front >> 8) << 6 | (h_sync >> 8) << 4,
        size[0] & 0xFF, size[1] & 0xFF, (size[0] >> 8) << 4 | size[1] >> 8,
        0, 0, 0x18,
    )  # fmt: skip
