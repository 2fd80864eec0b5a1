"""GL contexts share textures, render targets and buffers: what one has drawn is what the next one sees.

Nothing here waits for a fence but where something is read back: it is the device that keeps the queue's order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests import newer_mesa
from tests.device_lab import OPTIONS, DeviceLab
from tests.fake_vmm import Box, FakeVmm, Rect, ResourceDescription, Target, commands
from tests.fake_vmm.gpu import Gpu
from tests.fake_vmm.virgl.protocol import Bind, Format, ResourceFlag
from tests.fake_vmm.virgl.protocol import Target as VirglTarget
from tests.fake_vmm.virgl.resources import Resource
from tests.service_process import ServiceProcess
from tests.sharing_lab import (
    DRAW,
    PICTURE,
    SHARED_PICTURE,
    SIDE,
    Canvas,
    Program,
    assert_all,
    assert_rows,
    buffer,
    canvas,
    cleaned_up,
    create,
    shade,
)

StartService = Callable[..., ServiceProcess]

BGRA = Format.B8G8R8A8_UNORM
FRAMES = 1000
"""In a row, with no fence among them."""

WAYS: dict[str, Callable[[StartService], ServiceProcess]] = {
    "zero copy": lambda start: start(OPTIONS, env=newer_mesa.environment()),
    "mirrored": lambda start: start([*OPTIONS, "--sharing=mirrored"]),
    "one worker": lambda start: start([*OPTIONS, "--share-worker"]),
}
"""With a driver that imports memory, a picture that is foretold lies there for all; others are mirrored there, too."""

BINDS = pytest.mark.parametrize("bind", [PICTURE, SHARED_PICTURE], ids=["late", "foretold"])
"""Whether the guest said at creation that others will have it."""


@pytest.fixture(scope="module", params=WAYS)
def lab(request: pytest.FixtureRequest, start_service: StartService) -> Iterator[DeviceLab]:
    service = WAYS[request.param](start_service)
    yield DeviceLab(service)
    assert service.stop() == 0


@pytest.fixture(scope="module")
def vmm(lab: DeviceLab) -> Iterator[FakeVmm]:
    """One VM for all; once it has left, the service holds what it held before."""
    with lab.guest() as vmm:
        yield vmm
        assert "context lost" not in lab.log


@pytest.fixture
def gpu(vmm: FakeVmm) -> Iterator[Gpu]:
    with cleaned_up(vmm.gpu) as gpu:
        yield gpu


# --- order ----------------------------------------------------------------------------------------------------------


@BINDS
def test_frames_come_in_order(gpu: Gpu, bind: Bind) -> None:
    shared, seen = canvas(gpu, bind=bind), canvas(gpu, SIDE, FRAMES, PICTURE)
    painter, viewer = Program(gpu, "painter", shared), Program(gpu, "viewer", shared, seen)
    for number in range(FRAMES):
        painter.paint(shared, shade(number))
        viewer.copy_row(seen, number, shared, number % SIDE)
    assert_rows(viewer.picture(seen), list(range(FRAMES)))


@BINDS
def test_frames_are_sampled_in_order(gpu: Gpu, bind: Bind) -> None:
    """As a compositor does it: the picture is a texture in its draws."""
    frames = FRAMES // 4
    shared, screen, seen = canvas(gpu, bind=bind), canvas(gpu, bind=PICTURE), canvas(gpu, SIDE, frames, PICTURE)
    painter, compositor = Program(gpu, "painter", shared), Program(gpu, "compositor", shared, screen, seen)
    compositor.prepare_to_draw(screen, shared)
    for number in range(frames):
        painter.paint(shared, shade(number))
        compositor.context.submit(DRAW, fenced=False)
        compositor.copy_row(seen, number, screen, number % SIDE)
    assert_rows(compositor.picture(seen), list(range(frames)))


@BINDS
def test_both_draw_in_turn(gpu: Gpu, bind: Bind) -> None:
    frames = FRAMES // 2
    shared = canvas(gpu, bind=bind)
    seen = [canvas(gpu, SIDE, frames, PICTURE) for _ in range(2)]
    programs = [Program(gpu, f"player {number}", shared, seen[number]) for number in range(2)]
    for number in range(frames):
        for turn in range(2):
            programs[turn].paint(shared, shade(2 * number + turn))
            programs[1 - turn].copy_row(seen[1 - turn], number, shared)
    for turn in range(2):
        assert_rows(programs[turn].picture(seen[turn]), [2 * number + 1 - turn for number in range(frames)])


@BINDS
def test_three_pass_it_on(gpu: Gpu, bind: Bind) -> None:
    """The last one has never heard of the first one's canvas."""
    frames = FRAMES // 4
    canvases = [canvas(gpu, bind=bind) for _ in range(2)]
    seen = canvas(gpu, SIDE, frames, PICTURE)
    first, second = Program(gpu, "first", canvases[0]), Program(gpu, "second", *canvases)
    third = Program(gpu, "third", canvases[1], seen)
    for number in range(frames):
        first.paint(canvases[0], shade(number))
        second.copy(canvases[1], canvases[0])
        third.copy_row(seen, number, canvases[1], number % SIDE)
    assert_rows(third.picture(seen), list(range(frames)))


@BINDS
def test_three_have_the_same(gpu: Gpu, bind: Bind) -> None:
    frames = FRAMES // 5
    shared = canvas(gpu, bind=bind)
    seen = [canvas(gpu, SIDE, frames, PICTURE) for _ in range(3)]
    programs = [Program(gpu, f"player {number}", shared, seen[number]) for number in range(3)]
    for number in range(frames):
        painter = programs[number % 3]
        painter.paint(shared, shade(number))
        for program, notes in zip(programs, seen, strict=True):
            if program is not painter:
                program.copy_row(notes, number, shared, number % SIDE)
    for turn, (program, notes) in enumerate(zip(programs, seen, strict=True)):
        rows = [number for number in range(frames) if number % 3 != turn]
        assert_rows(program.picture(notes)[rows], rows)


def test_buffers_come_in_order(gpu: Gpu) -> None:
    piece = 64
    shared, seen = buffer(gpu, 4 * piece), buffer(gpu, FRAMES * piece)
    writer, reader = Program(gpu, "writer", shared), Program(gpu, "reader", shared, seen)
    chance = random.Random(1)
    frames = [chance.randbytes(piece) for _ in range(FRAMES)]
    for number, data in enumerate(frames):
        writer.write(shared, data, piece * (number % 4))
        reader.copy_bytes(seen, piece * number, shared, piece * (number % 4), piece)
    assert reader.read(seen) == b"".join(frames)


# --- what was there before ------------------------------------------------------------------------------------------


@BINDS
def test_late_comers_see_what_was_drawn_before(gpu: Gpu, bind: Bind) -> None:
    """Whether it is finished by then or still on its way."""
    shared = canvas(gpu, bind=bind)
    painter = Program(gpu, "painter", shared)
    painter.paint(shared, shade(1))
    painter.finish()
    first = Program(gpu, "first", shared)
    assert_all(first.picture(shared), 1)
    painter.paint(shared, shade(2))
    second = Program(gpu, "second", shared)
    assert_all(second.picture(shared), 2)
    second.paint(shared, shade(3))
    for program in (painter, first, second):
        assert_all(program.picture(shared), 3)


@BINDS
def test_contents_stay_when_others_leave(gpu: Gpu, bind: Bind) -> None:
    shared = canvas(gpu, bind=bind)
    programs = [Program(gpu, f"program {number}", shared) for number in range(3)]
    programs[0].paint(shared, shade(1))
    programs[0].leave()
    assert_all(programs[1].picture(shared), 1)
    programs[1].paint(shared, shade(2))
    programs[1].detach(shared)
    programs[2].copy_row(canvas(gpu), 0, shared)  # has none of that: no harm is done
    assert_all(programs[2].picture(shared), 2)
    programs[1].attach(shared)
    assert_all(programs[1].picture(shared), 2)
    programs[2].leave()
    assert_all(programs[1].picture(shared), 2)


@BINDS
def test_an_upload_is_seen_by_the_others(gpu: Gpu, bind: Bind) -> None:
    chance = random.Random(2)
    shared = canvas(gpu, bind=bind)
    programs = [Program(gpu, f"program {number}", shared) for number in range(2)]
    for turn in range(6):
        data = chance.randbytes(shared.backing.size)
        programs[turn % 2].upload(shared, data)
        assert programs[1 - turn % 2].read(shared) == data


def test_a_part_that_one_has_drawn_leaves_the_rest(gpu: Gpu) -> None:
    """Rows from one program and rows from the other are all there in the end."""
    shared, palette = canvas(gpu), canvas(gpu)
    programs = [Program(gpu, f"program {number}", shared, palette) for number in range(2)]
    for row in range(SIDE):
        program = programs[row % 2]
        program.paint(palette, shade(row))
        program.copy_row(shared, row, palette)
    for program in programs:
        assert_rows(program.picture(shared), list(range(SIDE)))


# --- what can be shared ---------------------------------------------------------------------------------------------


class Sheet:
    """A texture of any kind. Its layers are uploaded and read one by one: virglrenderer reads no more at once."""

    def __init__(self, gpu: Gpu, what: ResourceDescription, texel: int) -> None:
        """texel: bytes of one."""
        self._gpu = gpu
        self._what = what
        layers = [self._layers(level) for level in range(what.last_level + 1)]
        self._boxes = [(level, box) for level, boxes in enumerate(layers) for box in boxes]
        self._sizes = [box.width * box.height * texel for _, box in self._boxes]
        self.resource = gpu.create_resource_3d(what, backing_size=max(self._sizes))

    def attach(self, program: Program) -> None:
        program.context.attach(self.resource)

    def _layers(self, level: int) -> list[Box]:
        what = self._what
        width, height, depth = (max(size >> level, 1) for size in (what.width, what.height, what.depth))
        count = depth if what.target == Target.TEXTURE_3D else what.array_size
        return [Box(width, height, z=z) for z in range(count)]

    def upload(self, program: Program, data: list[bytes]) -> None:
        """What random() made."""
        place = program.ctx_id, self.resource.resource_id
        for (level, box), each in zip(self._boxes, data, strict=True):
            self.resource.pixels.write(each)
            self._gpu.transfer_to_host_3d(*place, box, level=level).check(f"upload to {box} of level {level}")

    def read(self, program: Program) -> list[bytes]:
        """All layers of all levels."""
        place = program.ctx_id, self.resource.resource_id
        data = []
        for (level, box), nbytes in zip(self._boxes, self._sizes, strict=True):
            self.resource.pixels.write(bytes(nbytes))
            self._gpu.transfer_from_host_3d(*place, box, level=level).check(f"reading {box} of level {level}")
            data.append(self.resource.pixels.read(0, nbytes))
        return data

    def random(self, seed: int) -> list[bytes]:
        """Contents, by layer. Every byte is one that floats of any size can have."""
        chance = random.Random(seed)
        return [bytes(chance.randrange(0x38, 0x3C) for _ in range(nbytes)) for nbytes in self._sizes]


FORMATS = {
    "B8G8R8A8": (1, 4),
    "B8G8R8X8": (2, 4),
    "B5G5R5A1": (5, 2),
    "B5G6R5": (7, 2),
    "R10G10B10A2": (8, 4),
    "A8": (10, 1),
    "Z16": (16, 2),
    "Z32_FLOAT": (18, 4),
    "S8_Z24": (20, 4),
    "R32_FLOAT": (28, 4),
    "R32G32B32A32_FLOAT": (31, 16),
    "R16": (48, 2),
    "R16G16B16A16": (51, 8),
    "R8": (64, 1),
    "R8G8": (65, 2),
    "R8G8B8A8": (67, 4),
    "R8_SNORM": (74, 1),
    "R16G16_FLOAT": (92, 4),
    "R16G16B16A16_FLOAT": (94, 8),
    "B8G8R8A8_SRGB": (100, 4),
    "R8G8B8A8_SRGB": (104, 4),
    "R11G11B10_FLOAT": (124, 4),
    "R9G9B9E5_FLOAT": (125, 4),
    "B10G10R10A2": (131, 4),
    "R8G8B8X8": (134, 4),
    "R8_UINT": (177, 1),
    "R8G8B8A8_SINT": (184, 4),
    "R32_UINT": (193, 4),
    "R32G32B32A32_UINT": (196, 16),
}
"""Number (virgl_hw.h, enum virgl_formats) and bytes of a texel."""
_DEPTH = range(16, 23)


def share(gpu: Gpu, what: ResourceDescription, texel: int) -> None:
    """What programs see of each other's uploads is what one alone sees of its own."""
    first, second = Program(gpu, "first"), Program(gpu, "second")
    sheet = Sheet(gpu, what, texel)
    sheet.attach(first)
    data = sheet.random(1)
    sheet.upload(first, data)
    own = sheet.read(first)
    assert all(map(any, own))
    sheet.attach(second)
    assert sheet.read(second) == own
    sheet.upload(second, sheet.random(2))
    theirs = sheet.read(second)
    assert theirs != own
    assert sheet.read(first) == theirs
    sheet.upload(first, data)
    assert sheet.read(second) == own


@pytest.mark.parametrize("name", FORMATS)
@BINDS
def test_formats(gpu: Gpu, name: str, bind: Bind) -> None:
    number, texel = FORMATS[name]
    if number in _DEPTH:
        bind = bind & ~Bind.RENDER_TARGET | Bind.DEPTH_STENCIL
    share(gpu, ResourceDescription(20, 12, format=number, bind=bind), texel)


@pytest.mark.parametrize(
    "what",
    [
        ResourceDescription(40, target=Target.TEXTURE_1D, last_level=2),
        ResourceDescription(40, target=Target.TEXTURE_1D_ARRAY, array_size=3, last_level=1),
        ResourceDescription(20, 12, target=Target.TEXTURE_2D, last_level=4),
        ResourceDescription(20, 12, target=Target.TEXTURE_RECT),
        ResourceDescription(20, 12, target=Target.TEXTURE_2D_ARRAY, array_size=5, last_level=3),
        ResourceDescription(20, 12, target=Target.TEXTURE_3D, depth=6, last_level=2),
        ResourceDescription(16, 16, target=Target.TEXTURE_CUBE, array_size=6, last_level=2),
        ResourceDescription(16, 16, target=Target.TEXTURE_CUBE_ARRAY, array_size=12, last_level=1),
    ],
    ids=lambda what: what.target.name.lower(),
)
@BINDS
def test_levels_and_layers(gpu: Gpu, what: ResourceDescription, bind: Bind) -> None:
    share(gpu, replace(what, bind=bind), 4)


@pytest.mark.parametrize("nbytes", [1, 255, 4096, 100_001])
def test_buffers(gpu: Gpu, nbytes: int) -> None:
    share(gpu, ResourceDescription(nbytes, format=64, target=Target.BUFFER, bind=Bind.VERTEX_BUFFER), 1)


def test_what_cannot_be_shared_does_no_harm(gpu: Gpu) -> None:
    """Pixels of several samples cannot be had: each program has its own."""
    many = create(gpu, Resource(0, VirglTarget.TEXTURE_2D, BGRA, PICTURE, SIDE, SIDE, nr_samples=4))
    programs = [Program(gpu, f"program {number}", many) for number in range(2)]
    shown = [canvas(gpu) for _ in programs]
    for number, (program, show) in enumerate(zip(programs, shown, strict=True)):
        program.attach(show)
        program.paint(many, shade(number))
        program.blit(show, many)
    for number, (program, show) in enumerate(zip(programs, shown, strict=True)):
        assert_all(program.picture(show), number)


# --- dumb buffers ---------------------------------------------------------------------------------------------------


def upright(gpu: Gpu, height: int) -> Canvas:
    """A picture whose first row is on top, as those that RESOURCE_CREATE_2D makes: virglrenderer turns others over."""
    return create(gpu, Resource(0, VirglTarget.TEXTURE_2D, BGRA, PICTURE, SIDE, height, flags=ResourceFlag.Y_0_TOP))


def dumb(gpu: Gpu, frames: int) -> Canvas:
    """A picture that RESOURCE_CREATE_2D made. Behind it there is memory for so many rows."""
    resid = gpu.new_resource_id()
    gpu.resource_create_2d(resid, BGRA, SIDE, SIDE).check()
    backing = gpu.memory.buffer(4 * SIDE * frames)
    gpu.resource_attach_backing(resid, backing.segments()).check()
    what = Resource(resid, VirglTarget.TEXTURE_2D, BGRA, PICTURE, SIDE, SIDE, flags=ResourceFlag.Y_0_TOP)
    return Canvas(gpu, what, backing)


def test_a_dumb_buffer_is_a_texture(gpu: Gpu) -> None:
    """What the guest's processor has written, a GL program sees once it was transferred, whenever it attached."""
    picture, seen = dumb(gpu, SIDE), upright(gpu, SIDE)
    data = random.Random(3).randbytes(4 * SIDE * SIDE)
    picture.backing.write(data)
    gpu.transfer_to_host_2d(picture.resource_id, Rect(SIDE, SIDE)).check()
    viewer = Program(gpu, "viewer", picture, seen)
    viewer.copy(seen, picture)
    assert viewer.read(seen) == data
    changed = bytes(4 * SIDE) + data[4 * SIDE :]
    picture.backing.write(changed)
    gpu.transfer_to_host_2d(picture.resource_id, Rect(SIDE, 1)).check()
    viewer.copy(seen, picture)
    assert viewer.read(seen) == changed
    second = Program(gpu, "second viewer", picture, seen)
    second.copy(seen, picture)
    assert second.read(seen) == changed


def test_frames_of_a_dumb_buffer_come_in_order(gpu: Gpu) -> None:
    """Of pictures whose first row is on top virglrenderer counts the rows of a copy from below."""
    picture, seen = dumb(gpu, FRAMES), upright(gpu, FRAMES)
    picture.backing.write(b"".join(bytes(shade(number)) * SIDE for number in range(FRAMES)))
    viewer = Program(gpu, "viewer", picture, seen)
    for number in range(FRAMES):
        row = number % SIDE
        transfer = commands.transfer_to_host_2d(picture.resource_id, Rect(SIDE, 1, y=row), 4 * SIDE * number)
        gpu.submit(transfer)
        viewer.copy_row(seen, FRAMES - 1 - number, picture, SIDE - 1 - row)
    assert_rows(viewer.picture(seen), list(range(FRAMES)))
