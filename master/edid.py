"""An EDID for a display that nobody else describes.

Source: VESA E-EDID 1.4 (one 128-byte base block) and VESA CVT 1.2, reduced blanking version 1, for the timing.

The preferred timing, which is also the only detailed one, is width x height at 60 Hz. Fields of the detailed timing
have 12 bits, and its pixel clock 16 bits of 10 kHz; a display that is too large for that is described by one of the
same shape that fits.
"""

import struct
from dataclasses import dataclass
from math import ceil
from typing import Final

BLOCK_BYTES: Final = 128
REFRESH_HZ: Final = 60
MAX_PIXELS: Final = 4095
MIN_PIXELS: Final = 16

_HEADER: Final = bytes.fromhex("00ffffffffffff00")
_MANUFACTURER: Final = "ISR"
_MODEL_YEAR: Final = 2024
_VIDEO_INPUT_DIGITAL_8BPC: Final = 0xA5  # digital, 8 bits a colour, DisplayPort
_GAMMA_2_2: Final = 120  # (gamma - 1) * 100
_FEATURES: Final = 0x06  # RGB 4:4:4, sRGB is the default, the first timing is the native one
_SRGB_CHROMATICITY: Final = bytes.fromhex("ee91a3544c99260f5054")
_NO_ESTABLISHED_TIMINGS: Final = bytes(3)
_NO_STANDARD_TIMINGS: Final = b"\x01\x01" * 8
_DUMMY_DESCRIPTOR: Final = bytes.fromhex("000000100000000000000000000000000000")
_PIXELS_PER_MM: Final = 100 / 25.4  # 100 dots per inch
_CLOCK_UNIT_KHZ: Final = 10
_MAX_CLOCK_KHZ: Final = 0xFFFF * _CLOCK_UNIT_KHZ
_MIN_CLOCK_KHZ: Final = 10_000  # a slower one is taken for garbage by parsers


@dataclass(frozen=True, slots=True)
class Timing:
    """A video timing. Pixels across, lines down; clock_khz: pixel clock."""

    width: int
    height: int
    h_front_porch: int
    h_sync: int
    h_blank: int
    v_front_porch: int
    v_sync: int
    v_blank: int
    clock_khz: int

    @property
    def refresh_hz(self) -> float:
        return self.clock_khz * 1000 / ((self.width + self.h_blank) * (self.height + self.v_blank))

    @property
    def line_khz(self) -> float:
        return self.clock_khz / (self.width + self.h_blank)


def reduced_blanking_timing(width: int, height: int, refresh_hz: int = REFRESH_HZ) -> Timing:
    """CVT reduced blanking, version 1 (section 3.4): fixed horizontal blanking, at least 460 us of vertical blanking.

    A very small display gets more vertical blanking, so that its pixel clock is one that a display could have.
    """
    h_blank, h_front_porch, h_sync = 160, 48, 32
    v_front_porch, min_v_back_porch, clock_step_khz = 3, 6, 250
    min_v_blank_us = 460.0
    v_sync = _v_sync_lines(width, height)
    line_us = (1_000_000 / refresh_hz - min_v_blank_us) / height
    v_blank = max(int(min_v_blank_us / line_us) + 1, v_front_porch + v_sync + min_v_back_porch)
    v_blank = max(v_blank, ceil((_MIN_CLOCK_KHZ + clock_step_khz) * 1000 / refresh_hz / (width + h_blank)) - height)
    pixels = (width + h_blank) * (height + v_blank)
    clock_khz = refresh_hz * pixels // 1000 // clock_step_khz * clock_step_khz
    return Timing(width, height, h_front_porch, h_sync, h_blank, v_front_porch, v_sync, v_blank, clock_khz)


def _v_sync_lines(width: int, height: int) -> int:
    """CVT tells a timing's shape by the length of its vertical sync (table 2)."""
    shapes = {(4, 3): 4, (16, 9): 5, (16, 10): 6, (5, 4): 7, (15, 9): 7}
    return next((lines for (w, h), lines in shapes.items() if width * h == height * w), 10)


def make_edid(width: int, height: int) -> bytes:
    """The 128 bytes for a display of width x height pixels (see the module's text for huge ones).

    ValueError below 16 pixels on a side.
    """
    if min(width, height) < MIN_PIXELS:
        raise ValueError(f"a display of {width}x{height} pixels")
    timing = _describable_timing(width, height)
    block = b"".join(
        (
            _HEADER,
            struct.pack(">H", _manufacturer_id(_MANUFACTURER)),
            struct.pack("<HI", 1, 0),  # product code, no serial number
            bytes((0xFF, _MODEL_YEAR - 1990, 1, 4)),  # the year is the model's; EDID 1.4
            bytes((_VIDEO_INPUT_DIGITAL_8BPC, *_size_cm(timing), _GAMMA_2_2, _FEATURES)),
            _SRGB_CHROMATICITY,
            _NO_ESTABLISHED_TIMINGS,
            _NO_STANDARD_TIMINGS,
            _detailed_timing(timing),
            _range_limits(timing),
            _text_descriptor(0xFC, "isorend"),
            _DUMMY_DESCRIPTOR,
            b"\0",  # no extension blocks
        )
    )
    return block + bytes((-sum(block) % 256,))


def _describable_timing(width: int, height: int) -> Timing:
    """The timing of width x height, or of the first size of that shape going down that fits into the descriptor."""
    shrink = max(width, height, MAX_PIXELS) / MAX_PIXELS
    while True:
        timing = reduced_blanking_timing(max(MIN_PIXELS, int(width / shrink)), max(MIN_PIXELS, int(height / shrink)))
        if timing.clock_khz <= _MAX_CLOCK_KHZ:
            return timing
        shrink *= 1.01


def _manufacturer_id(letters: str) -> int:
    """Three letters of five bits each."""
    number = 0
    for letter in letters:
        number = number << 5 | ord(letter) - ord("A") + 1
    return number


def _size_mm(timing: Timing) -> tuple[int, int]:
    return round(timing.width / _PIXELS_PER_MM), round(timing.height / _PIXELS_PER_MM)


def _size_cm(timing: Timing) -> tuple[int, int]:
    width_mm, height_mm = _size_mm(timing)
    return min(255, max(1, round(width_mm / 10))), min(255, max(1, round(height_mm / 10)))


def _detailed_timing(timing: Timing) -> bytes:
    """18-byte descriptor, section 3.10.2: the low 8 bits of each number, then the high bits gathered."""
    width_mm, height_mm = _size_mm(timing)
    digital_separate_sync_h_positive = 0x1A  # reduced blanking: horizontal sync positive, vertical negative
    return struct.pack("<H", timing.clock_khz // _CLOCK_UNIT_KHZ) + bytes(
        (
            timing.width & 0xFF,
            timing.h_blank & 0xFF,
            timing.width >> 8 << 4 | timing.h_blank >> 8,
            timing.height & 0xFF,
            timing.v_blank & 0xFF,
            timing.height >> 8 << 4 | timing.v_blank >> 8,
            timing.h_front_porch,
            timing.h_sync,
            timing.v_front_porch << 4 | timing.v_sync,
            0,  # high bits of the four before
            width_mm & 0xFF,
            height_mm & 0xFF,
            width_mm >> 8 << 4 | height_mm >> 8,
            0,  # no border
            0,
            digital_separate_sync_h_positive,
        )
    )


def _range_limits(timing: Timing) -> bytes:
    """Display range limits, section 3.10.3.3.1: what lies around the one timing. Offsets extend bytes past 255."""
    min_line, max_line = int(timing.line_khz), ceil(timing.line_khz)
    max_clock = ceil(timing.clock_khz / 10_000)
    offsets = 0
    if max_line > 255:
        offsets |= 0b1000
        max_line -= 255
        if min_line > 255:
            offsets |= 0b1100
            min_line -= 255
    range_limits_only = 0x01
    return bytes((0, 0, 0, 0xFD, offsets, 50, 75, max(1, min_line), max(1, max_line), max_clock, range_limits_only)) + (
        b"\x0a" + b" " * 6
    )


def _text_descriptor(tag: int, text: str) -> bytes:
    """Up to 13 characters, ended by a line feed and padded with spaces."""
    return bytes((0, 0, 0, tag, 0)) + (text.encode("ascii") + b"\n").ljust(13)[:13]
