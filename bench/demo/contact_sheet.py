"""The contact sheet: every program's last picture with its figures below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

_BACKGROUND = (18, 20, 26)
_CARD = (30, 33, 42)
_TEXT = (236, 238, 244)
_FAINT = (150, 156, 172)
_GOOD = (92, 200, 128)
_BAD = (240, 92, 88)

_MARGIN = 32
_GAP = 24
_PADDING = 18
_HEADER = 104
_CAPTION = 118
_CARD_WIDTH = 480
_FOOTER = 52


@dataclass(frozen=True, slots=True)
class Card:
    """One picture: (height, width, 3) red, green, blue; a name; a line of figures for each string; how it ended."""

    picture: npt.NDArray[np.uint8]
    name: str
    figures: Sequence[str]
    verdict: str
    lost: bool


def contact_sheet(title: str, subtitle: str, cards: Sequence[Card], footer: str) -> Image.Image:
    """The cards side by side under a title."""
    tallest = max(_scaled_height(card) for card in cards)
    width = 2 * _MARGIN + len(cards) * _CARD_WIDTH + (len(cards) - 1) * _GAP
    height = _HEADER + tallest + _CAPTION + _FOOTER + _PADDING
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 26), title, _TEXT, _font(30))
    draw.text((_MARGIN, 66), subtitle, _FAINT, _font(17))
    for index, card in enumerate(cards):
        _draw_card(sheet, draw, card, _MARGIN + index * (_CARD_WIDTH + _GAP), tallest)
    draw.text((_MARGIN, height - _FOOTER + 10), footer, _FAINT, _font(17))
    return sheet


def _draw_card(sheet: Image.Image, draw: ImageDraw.ImageDraw, card: Card, left: int, tallest: int) -> None:
    colour = _BAD if card.lost else _GOOD
    right, bottom = left + _CARD_WIDTH, _HEADER + tallest + _CAPTION
    draw.rounded_rectangle((left, _HEADER, right - 1, bottom), 10, _CARD)
    picture = Image.fromarray(card.picture).resize((_CARD_WIDTH, _scaled_height(card)), Image.Resampling.LANCZOS)
    sheet.paste(picture, (left, _HEADER + (tallest - picture.height) // 2))
    top = _HEADER + tallest
    draw.rectangle((left, top, right - 1, top + 3), colour)
    draw.text((left + _PADDING, top + 14), card.name, _TEXT, _font(24))
    radius, middle = 6, top + 30
    text_width = draw.textlength(card.verdict, _font(17))
    dot = right - _PADDING - text_width - 16
    draw.ellipse((dot - radius, middle - radius, dot + radius, middle + radius), colour)
    draw.text((dot + 16, middle), card.verdict, colour, _font(17), anchor="lm")
    for line, figure in enumerate(card.figures):
        draw.text((left + _PADDING, top + 52 + 26 * line), figure, _FAINT, _font(17))


def _scaled_height(card: Card) -> int:
    height, width = card.picture.shape[:2]
    return max(1, int(height * _CARD_WIDTH / width + 0.5))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which is there wherever Pillow is."""
    return ImageFont.load_default(size)
