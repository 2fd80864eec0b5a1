"""The fake VMM itself: guest memory, rings and commands against bytes written by hand, and its errors."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.fake_vmm import (
    PAGE_SIZE,
    Box,
    CommandFailed,
    CommandQueue,
    Disconnected,
    DriverQueue,
    Gpu,
    GuestMemory,
    NullStream,
    OutOfGuestMemory,
    ProtocolViolation,
    QueueBroken,
    Rect,
    ResourceDescription,
    Response,
    Segment,
    commands,
    misbehaviour,
    wire,
)
from tests.fake_vmm.ring_device import BadChain, RingDevice
from tests.fake_vmm.virtqueue import QueueFull

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory([(0, 4 * MIB), (4 * MIB, 4 * MIB), (4 * GIB, 4 * MIB)], one_memfd=False) as ram:
        yield ram


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield ours, theirs


# --- guest memory ---------------------------------------------------------------------------------------------------


def test_write_crosses_regions_that_touch_into_both_memfds(memory: GuestMemory) -> None:
    memory.write(4 * MIB - 3, b"abcdef")
    assert memory.read(4 * MIB - 3, 6) == b"abcdef"
    assert os.pread(memory.regions[0].fd, 3, 4 * MIB - 3) == b"abc"
    assert os.pread(memory.regions[1].fd, 3, 0) == b"def"


def test_access_outside_ram_is_an_error(memory: GuestMemory) -> None:
    with pytest.raises(ValueError, match="not guest RAM"):
        memory.read(8 * MIB - 1, 2)
    with pytest.raises(ValueError, match="leave their region"):
        memory.view(4 * MIB - 1, 2)


def test_one_memfd_holds_regions_at_offsets() -> None:
    with GuestMemory([(0, MIB), (4 * GIB, MIB)]) as ram:
        ram.write(4 * GIB, b"high")
        assert ram.regions[0].fd == ram.regions[1].fd
        assert ram.regions[1].offset == MIB
        assert os.pread(ram.regions[1].fd, 4, MIB) == b"high"
        assert ram.to_uva(4 * GIB + 5) == ram.regions[1].uva + 5


def test_allocations_do_not_overlap_and_come_back(memory: GuestMemory) -> None:
    blocks = [memory.allocate(3 * PAGE_SIZE) for _ in range(300)]
    pages = {gpa + i * PAGE_SIZE for gpa in blocks for i in range(3)}
    assert len(pages) == 900
    for gpa in blocks:
        memory.free(gpa, 3 * PAGE_SIZE)
    whole = [memory.allocate(size) for size in (4 * MIB, 4 * MIB, 4 * MIB - PAGE_SIZE)]
    assert whole == [4 * MIB, 4 * GIB, PAGE_SIZE], "all of RAM but the page at address 0"
    with pytest.raises(OutOfGuestMemory):
        memory.allocate(PAGE_SIZE)


def test_scattered_pages_are_apart_and_taken(memory: GuestMemory) -> None:
    buffer = memory.buffer(100 * PAGE_SIZE - 7, scattered=True)
    pages = [gpa for gpa, _ in buffer.extents]
    assert len(set(pages)) == 100
    assert all(b != a + PAGE_SIZE for a, b in itertools.pairwise(pages))
    assert sum(length for _, length in buffer.segments()) == buffer.size
    data = np.random.default_rng(1).bytes(buffer.size)
    buffer.write(data)
    assert buffer.read() == data
    assert buffer.read(PAGE_SIZE - 2, 5) == data[PAGE_SIZE - 2 : PAGE_SIZE + 3]
    with pytest.raises(OutOfGuestMemory):
        memory.reserve(pages[50], PAGE_SIZE)
    buffer.free()
    memory.reserve(pages[50], PAGE_SIZE)


# --- virtqueue ------------------------------------------------------------------------------------------------------


def test_direct_chain_in_bytes(memory: GuestMemory) -> None:
    queue = DriverQueue(memory, 0, 4, event_idx=False)
    head = queue.add([Segment(0x1000, 24), Segment(0x2000, 8), Segment(0x3000, 408, writable=True)])
    assert head == 0
    assert memory.read(queue.avail_gpa, 12) == bytes(12), "nothing is published yet"
    queue.kick()
    table = bytes.fromhex(
        "0010000000000000 18000000 0100 0100"
        "0020000000000000 08000000 0100 0200"
        "0030000000000000 98010000 0200 0000"
    )
    assert memory.read(queue.desc_gpa, 48) == table
    assert memory.read(queue.avail_gpa, 6) == bytes.fromhex("0000 0100 0000")
    queue.close()


def test_indirect_chain_in_bytes(memory: GuestMemory) -> None:
    queue = DriverQueue(memory, 0, 4, event_idx=True)
    table = memory.allocate(PAGE_SIZE)
    queue.add([Segment(0x1000, 24), Segment(0x3000, 24, writable=True)], table_gpa=table)
    queue.kick()
    assert memory.read(queue.desc_gpa, 16) == struct.pack("<QIHH", table, 32, 4, 0)
    assert memory.read(table, 32) == bytes.fromhex(
        "0010000000000000 18000000 0100 0100" "0030000000000000 18000000 0200 0000"
    )
    assert queue.free_descriptors == 3
    queue.close()


def test_queue_full_and_release(memory: GuestMemory) -> None:
    queue = DriverQueue(memory, 0, 4, event_idx=False)
    device = RingDevice(queue)
    queue.add([Segment(0, 1), Segment(0, 1)])
    queue.add([Segment(0, 1), Segment(0, 1)])
    with pytest.raises(QueueFull):
        queue.add([Segment(0, 1)])
    queue.publish()
    chain = device.pop()
    assert chain is not None
    device.answer(chain, b"")
    assert queue.pop_used() == (chain.head, 0)
    assert queue.free_descriptors == 2
    queue.close()


@pytest.mark.parametrize("event_idx", [False, True])
def test_indices_wrap_past_16_bits(memory: GuestMemory, event_idx: bool) -> None:
    queue = DriverQueue(memory, 0, 256, event_idx=event_idx)
    device = RingDevice(queue)
    for _ in range(0x10000 // 200 + 2):
        heads = [queue.add([Segment(0, 1)]) for _ in range(200)]
        queue.publish()
        for _ in heads:
            chain = device.pop()
            assert chain is not None
            device.push(chain.head, 0)
        assert [queue.pop_used() for _ in heads] == [(head, 0) for head in heads]
    assert queue.pop_used() is None
    assert queue.free_descriptors == 256
    queue.close()


def test_kick_obeys_event_index(memory: GuestMemory) -> None:
    queue = DriverQueue(memory, 0, 8, event_idx=True)
    device = RingDevice(queue)
    device.ask_for_kick(2)
    signalled = []
    for _ in range(4):
        queue.add([Segment(0, 1)])
        queue.kick()
        signalled.append(device.kicked())
    assert signalled == [False, False, True, False]
    assert (queue.kicks, queue.kicks_suppressed) == (1, 3)
    queue.close()


def test_kick_obeys_no_notify_without_event_index(memory: GuestMemory) -> None:
    queue = DriverQueue(memory, 0, 8, event_idx=False)
    device = RingDevice(queue)
    for suppressed in (False, True, False):
        device.suppress_kicks(suppressed)
        queue.add([Segment(0, 1)])
        queue.kick()
        assert device.kicked() is not suppressed
    device.suppress_kicks(True)
    queue.kick(force=True)
    assert device.kicked()
    queue.close()


def test_enable_interrupt_writes_used_event_and_sees_work(memory: GuestMemory) -> None:
    queue = DriverQueue(memory, 0, 8, event_idx=True)
    device = RingDevice(queue)
    for _ in range(3):
        queue.add([Segment(0, 1)])
    queue.publish()
    assert queue.enable_interrupt(after=2)
    assert memory.read(queue.avail_gpa + 4 + 16, 2) == b"\x02\x00"
    for _ in range(3):
        chain = device.pop()
        assert chain is not None
        device.push(chain.head, 0)
    assert not queue.enable_interrupt(after=2)
    queue.close()


def test_a_descriptor_given_back_twice_is_a_violation(memory: GuestMemory) -> None:
    queue = DriverQueue(memory, 0, 8, event_idx=True)
    device = RingDevice(queue)
    first = queue.add([Segment(0, 1)])
    queue.add([Segment(0, 1)])
    queue.publish()
    device.push(first, 0)
    device.push(first, 0)
    assert queue.pop_used() == (first, 0)
    with pytest.raises(ProtocolViolation, match="not outstanding"):
        queue.pop_used()
    queue.close()


BAD_CHAIN_REASONS = {
    "loop": "loop",
    "self_loop": "loop",
    "next_out_of_range": "next out of range",
    "empty_buffer": "length 0",
    "writable_before_readable": "readable after writable",
    "request_outside_ram": "buffer outside RAM",
    "response_outside_ram": "buffer outside RAM",
    "address_wraps": "buffer outside RAM",
    "leaves_ram": "buffer outside RAM",
    "huge_total": "more than 4 GiB",
    "indirect_too_long": "longer than the queue",
    "indirect_loop": "loop",
    "indirect_next_out_of_range": "next out of range",
    "indirect_odd_length": "indirect table length",
    "indirect_empty": "indirect table length",
    "indirect_huge": "indirect table outside RAM",
    "indirect_in_indirect": "indirect descriptor inside a chain",
    "indirect_with_next": "indirect descriptor with NEXT",
    "indirect_outside_ram": "indirect table outside RAM",
    "only_writable": None,
    "only_readable": None,
}


@pytest.mark.parametrize("make", misbehaviour.BAD_CHAINS, ids=lambda make: make.__name__)
def test_bad_chains_break_the_rule_they_are_named_for(make: Callable[[DriverQueue], int]) -> None:
    reason = BAD_CHAIN_REASONS[make.__name__]
    with GuestMemory([(0, 64 * MIB)]) as ram:
        queue = DriverQueue(ram, 0, 256, event_idx=True)
        device = RingDevice(queue)
        head = make(queue)
        queue.kick(force=True)
        if reason is None:
            chain = device.pop()
            assert chain is not None
            assert chain.head == head
        else:
            with pytest.raises(BadChain, match=reason):
                device.pop()
        queue.close()


def test_bad_ring_entries() -> None:
    with GuestMemory([(0, MIB)]) as ram:
        for make, reason in (
            (misbehaviour.head_out_of_range, "head out of range"),
            (misbehaviour.available_index_jump, "further ahead"),
        ):
            queue = DriverQueue(ram, 0, 16, event_idx=True)
            make(queue)
            queue.kick(force=True)
            with pytest.raises(BadChain, match=reason):
                RingDevice(queue).pop()
            queue.close()


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def control(memory: GuestMemory, sockets: tuple[socket.socket, socket.socket]) -> Iterator[CommandQueue]:
    queue = DriverQueue(memory, 0, 16, event_idx=True)
    commands_queue = CommandQueue(queue, indirect=True, timeout=30, connection=sockets[0].fileno())
    yield commands_queue
    commands_queue.close()


def request_of(control: CommandQueue, command: commands.GpuCommand, **how: int) -> bytes:
    """The request bytes as a device reads them."""
    control.submit(command, **how)
    device = RingDevice(control.queue)
    chain = device.pop()
    assert chain is not None
    assert sum(length for _, length in chain.writable) == command.response_size
    return device.read_request(chain)


def test_create_2d_in_bytes(control: CommandQueue) -> None:
    assert request_of(control, commands.resource_create_2d(7, wire.Format.B8G8R8X8, 640, 480)) == bytes.fromhex(
        "01010000 00000000 0000000000000000 00000000 00000000 07000000 02000000 80020000 e0010000"
    )


def test_fenced_submit_with_ring_index_in_bytes(control: CommandQueue) -> None:
    request = request_of(control, commands.submit_3d(3, b"\1\2\3\4"), fence_id=0x1122334455667788, ring_idx=2)
    assert request == bytes.fromhex("07020000 03000000 8877665544332211 03000000 02000000 04000000 00000000 01020304")


def test_transfer_3d_in_bytes(control: CommandQueue) -> None:
    command = commands.transfer_from_host_3d(
        1, 9, Box(16, 8, 1, x=2, y=3, z=4), offset=0x100, level=5, stride=64, layer_stride=512
    )
    assert request_of(control, command) == bytes.fromhex(
        "06020000 00000000 0000000000000000 01000000 00000000 02000000 03000000 04000000 10000000 08000000 01000000"
        "0001000000000000 09000000 05000000 40000000 00020000"
    )


def test_create_3d_in_bytes(control: CommandQueue) -> None:
    what = ResourceDescription(
        16, 8, format=67, bind=10, target=2, depth=1, array_size=6, last_level=3, nr_samples=4, flags=1
    )
    assert request_of(control, commands.resource_create_3d(5, what)) == bytes.fromhex(
        "04020000 00000000 0000000000000000 00000000 00000000 05000000 02000000 43000000 0a000000"
        "10000000 08000000 01000000 06000000 03000000 04000000 01000000 00000000"
    )


def test_attach_backing_and_context_in_bytes(control: CommandQueue) -> None:
    assert request_of(control, commands.resource_attach_backing(1, [(0x10000, 4096), (0x5000, 10)])) == bytes.fromhex(
        "06010000 00000000 0000000000000000 00000000 00000000 01000000 02000000"
        "0000010000000000 00100000 00000000 0050000000000000 0a000000 00000000"
    )
    control.queue.publish()
    created = commands.ctx_create(4, "kmscube")
    assert created.ctx_id == 4
    assert created.body == bytes.fromhex("07000000 00000000") + b"kmscube".ljust(64, b"\0")


def test_cursor_in_bytes() -> None:
    command = commands.update_cursor(1, 20, 30, 5, 2, 3)
    assert command.body == struct.pack("<8I", 1, 20, 30, 0, 5, 2, 3, 0)
    assert (command.type, command.response_size) == (0x300, 0)


def test_scanout_flush_and_transfer_2d_in_bytes() -> None:
    rect = Rect(4, 5, x=2, y=3)
    assert commands.set_scanout(1, 9, rect).body == struct.pack("<6I", 2, 3, 4, 5, 1, 9)
    assert commands.resource_flush(9, rect).body == struct.pack("<6I", 2, 3, 4, 5, 9, 0)
    assert commands.transfer_to_host_2d(9, rect, 64).body == struct.pack("<4IQII", 2, 3, 4, 5, 64, 9, 0)


def test_blobs_in_bytes(control: CommandQueue) -> None:
    command = commands.resource_create_blob(7, 3, 5, 0x2000, ctx_id=4, blob_id=9, segments=[(0x10000, 0x2000)])
    assert request_of(control, command) == bytes.fromhex(
        "0c010000 00000000 0000000000000000 04000000 00000000 07000000 03000000 05000000 01000000"
        "0900000000000000 0020000000000000 0000010000000000 00200000 00000000"
    )
    assert commands.resource_map_blob(7, 0x3000).body == struct.pack("<IIQ", 7, 0, 0x3000)
    assert commands.resource_map_blob(7, 0).response_size == 32
    assert commands.resource_unmap_blob(7).body == struct.pack("<II", 7, 0)
    rect = Rect(4, 5, x=2, y=3)
    shown = commands.set_scanout_blob(1, 9, rect, (64, 32), 67, [256, 128], [0, 8192])
    fields = (2, 3, 4, 5, 1, 9, 64, 32, 67, 0, 256, 128, 0, 0, 0, 8192, 0, 0)
    assert shown.body == struct.pack("<18I", *fields)


def test_a_context_says_what_it_is_for() -> None:
    assert commands.ctx_create(4, "x", 2).body[:8] == struct.pack("<II", 1, 2)


def answered_with(control: CommandQueue, response: bytes, ring_idx: int | None) -> Response:
    gpu = Gpu(control, control)
    pending = gpu.submit(commands.submit_3d(3, bytes(4)), fenced=True, ring_idx=ring_idx)
    device = RingDevice(control.queue)
    chain = device.pop()
    assert chain is not None
    device.answer(chain, response)
    return gpu.wait(pending)


def test_a_fence_comes_back_on_its_timeline(control: CommandQueue) -> None:
    assert answered_with(control, struct.pack("<IIQIB3x", 0x1100, 3, 1, 3, 2), 2).ok


@pytest.mark.parametrize(("flags", "ring_idx"), [(1, 0), (1, 2), (3, 1)])
def test_a_fence_on_another_timeline_is_a_violation(control: CommandQueue, flags: int, ring_idx: int) -> None:
    with pytest.raises(ProtocolViolation, match="on ring 2"):
        answered_with(control, struct.pack("<IIQIB3x", 0x1100, flags, 1, 3, ring_idx), 2)


def test_null_streams_in_words() -> None:
    stream = NullStream().blob(5, 4096).fill(7, 0xAB, 16, offset=4).copy(7, 8).check(8, 0xAB, 16, 4).delay(3).busy(1)
    words = (9, 5, 4096, 6, 7, 4, 16, 0xAB, 7, 7, 8, 8, 8, 4, 16, 0xAB, 5, 3, 1, 1)
    assert bytes(stream) == struct.pack("<20I", *words)
    assert bytes(NullStream().fail().hang().abort()) == struct.pack("<3I", 4, 3, 2)


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("size", [1, 4096, 4097, 300_000])
def test_payload_of_any_size_arrives(memory: GuestMemory, indirect: bool, size: int) -> None:
    with socket.socket(socket.AF_UNIX) as idle:
        queue = CommandQueue(
            DriverQueue(memory, 0, 128, event_idx=True), indirect=indirect, timeout=30, connection=idle.fileno()
        )
        data = np.random.default_rng(size).bytes(size)
        scattered = memory.buffer(size, scattered=True)
        scattered.write(data)
        device = RingDevice(queue.queue)
        for payload in (data, scattered):
            pending = queue.submit(commands.submit_3d(1, payload), fence_id=1)
            chain = device.pop()
            assert chain is not None
            assert chain.indirect is indirect
            assert device.read_request(chain)[32:] == data
            device.answer(chain, struct.pack("<IIQII", 0x1100, 1, 1, 1, 0))
            assert queue.wait(pending).response.fenced
        queue.close()


def test_request_and_response_split_over_descriptors(control: CommandQueue) -> None:
    pending = control.submit_bytes(bytes(range(24)), 24, request_split=[1, 7, 9], response_split=[4, 4])
    device = RingDevice(control.queue)
    chain = device.pop()
    assert chain is not None
    assert [length for _, length in chain.readable] == [1, 7, 9, 7]
    assert [length for _, length in chain.writable] == [4, 4, 16]
    assert device.read_request(chain) == bytes(range(24))
    device.answer(chain, struct.pack("<IIQII", 0x1203, 0, 0, 0, 0))
    response = control.wait(pending).response
    assert response.type == wire.Resp.ERR_INVALID_RESOURCE_ID
    with pytest.raises(CommandFailed, match="ERR_INVALID_RESOURCE_ID"):
        response.check()


def test_batch_publishes_once(control: CommandQueue) -> None:
    device = RingDevice(control.queue)
    with control.batch():
        pending = [control.submit(commands.get_capset_info(i)) for i in range(10)]
        assert device.available_index == 0
    assert device.available_index == 10
    assert control.queue.kicks == 1
    for i in range(10):
        chain = device.pop()
        assert chain is not None
        device.answer(chain, struct.pack("<IIQII4I", 0x1102, 0, 0, 0, 0, i, 1, 308, 0))
    infos = [each.response for each in control.wait_all(pending)]
    assert [info.capset_id for info in infos if isinstance(info, wire.CapsetInfo)] == list(range(10))
    assert all(each.completed_at >= each.submitted_at for each in pending)


def test_a_full_queue_waits_for_room(control: CommandQueue) -> None:
    """More commands than slots: the driver waits, so the device has to answer meanwhile."""
    device = RingDevice(control.queue)
    stop = threading.Event()

    def answer_all() -> None:
        while not stop.is_set():
            chain = device.pop()
            if chain is None:
                stop.wait(0.001)
            else:
                device.answer(chain, struct.pack("<IIQII", 0x1100, 0, 0, 0, 0))

    thread = threading.Thread(target=answer_all)
    thread.start()
    try:
        with control.batch():
            pending = [control.submit(commands.resource_unref(i)) for i in range(100)]
        assert all(each.response.ok for each in control.wait_all(pending))
    finally:
        stop.set()
        thread.join()
    assert not control.outstanding
    assert control.queue.free_descriptors == control.queue.size


def test_short_and_overlong_responses_are_violations(control: CommandQueue) -> None:
    device = RingDevice(control.queue)
    short = control.submit(commands.get_display_info())
    chain = device.pop()
    assert chain is not None
    device.answer(chain, struct.pack("<IIQII", 0x1101, 0, 0, 0, 0))
    with pytest.raises(ProtocolViolation, match="OK_DISPLAY_INFO of 24 bytes instead of 408"):
        _ = control.wait(short).response
    control.submit(commands.resource_unref(1))
    chain = device.pop()
    assert chain is not None
    device.push(chain.head, 25)
    with pytest.raises(ProtocolViolation, match="25 bytes written into 24"):
        control.reap()


def test_waiting_errors_name_the_command(
    control: CommandQueue, sockets: tuple[socket.socket, socket.socket]
) -> None:
    pending = control.submit(commands.submit_3d(3, b"1234"), fence_id=7)
    with pytest.raises(TimeoutError, match="SUBMIT_3D, ctx 3, fence 7"):
        control.wait(pending, timeout=0.01)
    os.eventfd_write(control.queue.err_fd, 1)
    with pytest.raises(QueueBroken, match="control queue"):
        control.wait(pending)
    sockets[1].close()
    with pytest.raises(Disconnected, match="SUBMIT_3D"):
        control.wait(pending)


def test_reset_cancels_what_is_outstanding(control: CommandQueue) -> None:
    pending = control.submit(commands.resource_unref(1))
    control.reset()
    assert pending.cancelled
    assert control.queue.free_descriptors == control.queue.size
    with pytest.raises(Disconnected):
        control.wait(pending)
