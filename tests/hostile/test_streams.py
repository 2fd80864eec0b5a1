"""Command streams that are no streams: what they may cost is their own context, never another."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from tests.device_lab import assert_draws
from tests.fake_vmm import Box, Resp
from tests.fake_vmm.virgl.triangle import TriangleScene
from tests.hostile.conftest import Guest

ANSWERS = (Resp.OK_NODATA, Resp.ERR_UNSPEC, Resp.ERR_INVALID_PARAMETER, Resp.ERR_OUT_OF_MEMORY)


def garbage(seed: int) -> bytes:
    """Random words."""
    return random.Random(seed).randbytes(4 * random.Random(seed).randrange(1, 2000))


def headers(seed: int) -> bytes:
    """Commands that exist, of small but random contents, at least as long as they say."""
    dice = random.Random(seed)
    words: list[int] = []
    for _ in range(200):
        length = dice.randrange(12)
        words.append(dice.randrange(64) | dice.randrange(12) << 8 | length << 16)
        words += [dice.choice((0, 1, 2, 3, 0xFFFF_FFFF, dice.randrange(1 << 32))) for _ in range(length)]
    return struct.pack(f"<{len(words)}I", *words)


def bitten(seed: int) -> bytes:
    """A good program's stream with some words wrong. Its resources are not there."""
    dice = random.Random(seed)
    scene = TriangleScene()
    ids = iter(range(1, 100))
    scene.resources(lambda: next(ids))
    stream = bytearray(scene.setup() + scene.frame(0.0, 0))
    for _ in range(dice.randrange(1, 8)):
        struct.pack_into("<I", stream, 4 * dice.randrange(len(stream) // 4), dice.randrange(1 << 32))
    return bytes(stream)


@pytest.mark.parametrize("make", [garbage, headers, bitten])
def test_garbage(guest: Guest, make: Callable[[int], bytes]) -> None:
    """Every submit is answered, if only by an error, and the context can be destroyed."""
    for seed in range(10):
        context = guest.gpu.create_context(f"garbage {seed}")
        stream = make(seed)
        with guest.gpu.batch():
            pending = [context.submit(stream) for _ in range(3)]
        for response in guest.gpu.wait_all(pending):
            assert response.type in ANSWERS
        context.destroy()
    assert_draws(guest.neighbour)


def test_length_past_the_end_of_the_stream(guest: Guest) -> None:
    context = guest.gpu.create_context("overlong")
    assert context.run(struct.pack("<2I", 0xFFFF << 16 | 1, 0)).type in ANSWERS
    context.destroy()


def test_other_contexts_resources_are_out_of_reach(guest: Guest) -> None:
    """A stream that names the neighbour's resources, objects and context finds nothing there."""
    target = guest.neighbour.scene.target
    thief = guest.gpu.create_context("thief")
    scene = TriangleScene("theft", background=(0.0, 1.0, 0.0))
    scene._target, scene._vertices = target, guest.neighbour.scene.vertices  # type: ignore[attr-defined]
    for stream in (scene.setup(), scene.frame(1.0, 0)):
        thief.run(stream)
    response = guest.gpu.transfer_from_host_3d(thief.ctx_id, target.resid, Box(8, 8))
    assert response.type == Resp.ERR_INVALID_RESOURCE_ID
    assert_draws(guest.neighbour)
    thief.destroy()


def test_a_program_after_a_broken_one_in_the_same_id(guest: Guest) -> None:
    context = guest.gpu.create_context("first")
    context.run(garbage(3))
    ctx_id = context.ctx_id
    context.destroy()
    guest.gpu.ctx_create(ctx_id, "second").check()
    assert guest.gpu.submit_3d(ctx_id, b"").ok
    guest.gpu.ctx_destroy(ctx_id).check()
