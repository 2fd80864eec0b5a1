"""Descriptor chains and messages that no honest driver makes (virtio 1.3, 2.7.4.2 and 2.7.5.3.1, turned around).

Each function puts one chain into a DriverQueue, unpublished, and returns its head; then `queue.kick(force=True)`.
`CommandQueue.wait_used(head)` waits for a device that gives such chains back; one that stops the ring instead may
signal the error eventfd, which raises QueueBroken. Free guest memory comes from `queue.memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.fake_vmm.memory import PAGE_SIZE
from tests.fake_vmm.virtqueue import F_INDIRECT, F_NEXT, F_WRITE, Descriptor, DriverQueue, write_table

_OUTSIDE_RAM = 0x7FFF_FFFF_0000
_REQUEST_SIZE = 24
_RESPONSE_SIZE = 24


def raw_chain(queue: DriverQueue, descriptors: Sequence[Descriptor]) -> int:
    """Direct descriptors as given, except that with F_NEXT set `next` counts within the chain (0 is the head)."""
    numbers = queue.take_descriptors(len(descriptors))
    for number, descriptor in zip(numbers, descriptors, strict=True):
        following = numbers[descriptor.next] if descriptor.flags & F_NEXT else descriptor.next
        queue.write_descriptor(number, descriptor._replace(next=following))
    queue.push(numbers[0], tuple(numbers))
    return numbers[0]


def raw_indirect(queue: DriverQueue, table: Sequence[Descriptor], *, table_length: int | None = None) -> int:
    """One indirect descriptor over a table written as it is; `table_length` in bytes, other than 16 each, is a lie."""
    gpa = queue.memory.allocate(max(16 * len(table), 16))
    write_table(queue.memory, gpa, table)
    length = 16 * len(table) if table_length is None else table_length
    return raw_chain(queue, [Descriptor(gpa, length, F_INDIRECT)])


def _request(queue: DriverQueue) -> int:
    """Address of a well-formed GET_DISPLAY_INFO header, with room for a response behind it."""
    gpa = queue.memory.allocate(PAGE_SIZE)
    queue.memory.write(gpa, (0x0100).to_bytes(4, "little") + bytes(PAGE_SIZE - 4))
    return gpa


def loop(queue: DriverQueue) -> int:
    """Two descriptors that follow each other for ever."""
    gpa = _request(queue)
    return raw_chain(queue, [Descriptor(gpa, _REQUEST_SIZE, F_NEXT, 1), Descriptor(gpa, _REQUEST_SIZE, F_NEXT, 0)])


def self_loop(queue: DriverQueue) -> int:
    """A descriptor that follows itself."""
    return raw_chain(queue, [Descriptor(_request(queue), _REQUEST_SIZE, F_NEXT, 0)])


def next_out_of_range(queue: DriverQueue) -> int:
    """`next` beyond the descriptor table."""
    number = queue.take_descriptors(1)[0]
    queue.write_descriptor(number, Descriptor(_request(queue), _REQUEST_SIZE, F_NEXT, 0xFFFF))
    queue.push(number, (number,))
    return number


def head_out_of_range(queue: DriverQueue) -> int:
    """An available entry that names no descriptor (not tracked: it may or may not come back)."""
    head = queue.size + 5
    queue.push_available(head)
    return head


def available_index_jump(queue: DriverQueue) -> int:
    """avail.idx further ahead than the ring is long (publishes by itself); returns the number of false entries."""
    entries = queue.size + 7
    queue.publish_index(queue.published + entries)
    return entries


def empty_buffer(queue: DriverQueue) -> int:
    """A single readable descriptor of length 0."""
    return raw_chain(queue, [Descriptor(_request(queue), 0)])


def only_writable(queue: DriverQueue) -> int:
    """A response buffer without any request."""
    return raw_chain(queue, [Descriptor(_request(queue), PAGE_SIZE, F_WRITE)])


def only_readable(queue: DriverQueue) -> int:
    """A request without room for a response."""
    return raw_chain(queue, [Descriptor(_request(queue), _REQUEST_SIZE)])


def writable_before_readable(queue: DriverQueue) -> int:
    gpa = _request(queue)
    return raw_chain(
        queue, [Descriptor(gpa + 2048, _RESPONSE_SIZE, F_WRITE | F_NEXT, 1), Descriptor(gpa, _REQUEST_SIZE)]
    )


def request_outside_ram(queue: DriverQueue) -> int:
    gpa = _request(queue)
    return raw_chain(
        queue, [Descriptor(_OUTSIDE_RAM, _REQUEST_SIZE, F_NEXT, 1), Descriptor(gpa + 2048, _RESPONSE_SIZE, F_WRITE)]
    )


def response_outside_ram(queue: DriverQueue) -> int:
    gpa = _request(queue)
    return raw_chain(
        queue, [Descriptor(gpa, _REQUEST_SIZE, F_NEXT, 1), Descriptor(_OUTSIDE_RAM, _RESPONSE_SIZE, F_WRITE)]
    )


def address_wraps(queue: DriverQueue) -> int:
    """Address plus length overflow 64 bits."""
    return raw_chain(queue, [Descriptor(0xFFFF_FFFF_FFFF_F000, 0xFFFF_FFFF)])


def leaves_ram(queue: DriverQueue) -> int:
    """A request that starts in the last page of RAM and ends far behind it."""
    end = queue.memory.regions[-1].end
    return raw_chain(queue, [Descriptor(end - 16, 1 << 30)])


def huge_total(queue: DriverQueue) -> int:
    """Descriptors over the same RAM whose lengths add up to more than 32 bits hold."""
    region = max(queue.memory.regions, key=lambda r: r.size)
    length = min(region.size, 0xFFFF_F000)
    count = min(queue.free_descriptors, (1 << 32) // length + 2)
    chain = [Descriptor(region.gpa, length, F_NEXT, i + 1) for i in range(count - 1)]
    return raw_chain(queue, [*chain, Descriptor(region.gpa, length)])


def indirect_too_long(queue: DriverQueue) -> int:
    """A table with more entries than the queue has descriptors."""
    gpa = _request(queue)
    entries = 4 * queue.size
    table = [Descriptor(gpa, 1, F_NEXT, i + 1) for i in range(entries - 1)]
    return raw_indirect(queue, [*table, Descriptor(gpa + 2048, _RESPONSE_SIZE, F_WRITE)])


def indirect_loop(queue: DriverQueue) -> int:
    gpa = _request(queue)
    return raw_indirect(queue, [Descriptor(gpa, 24, F_NEXT, 1), Descriptor(gpa, 24, F_NEXT, 0)])


def indirect_next_out_of_range(queue: DriverQueue) -> int:
    return raw_indirect(queue, [Descriptor(_request(queue), _REQUEST_SIZE, F_NEXT, 9)])


def indirect_odd_length(queue: DriverQueue) -> int:
    """A table length that is no multiple of 16."""
    gpa = _request(queue)
    table = [Descriptor(gpa, _REQUEST_SIZE, F_NEXT, 1), Descriptor(gpa + 2048, _RESPONSE_SIZE, F_WRITE)]
    return raw_indirect(queue, table, table_length=31)


def indirect_empty(queue: DriverQueue) -> int:
    return raw_indirect(queue, [], table_length=0)


def indirect_huge(queue: DriverQueue) -> int:
    """A table said to be 4 GiB long."""
    return raw_indirect(queue, [Descriptor(_request(queue), _REQUEST_SIZE)], table_length=0xFFFF_FFF0)


def indirect_in_indirect(queue: DriverQueue) -> int:
    """A table whose entry is a table (forbidden)."""
    inner = queue.memory.allocate(PAGE_SIZE)
    write_table(queue.memory, inner, [Descriptor(_request(queue), _REQUEST_SIZE)])
    return raw_indirect(queue, [Descriptor(inner, 16, F_INDIRECT)])


def indirect_with_next(queue: DriverQueue) -> int:
    """A descriptor that is both indirect and continued (forbidden)."""
    gpa = _request(queue)
    table = queue.memory.allocate(PAGE_SIZE)
    write_table(queue.memory, table, [Descriptor(gpa, _REQUEST_SIZE)])
    return raw_chain(
        queue, [Descriptor(table, 16, F_INDIRECT | F_NEXT, 1), Descriptor(gpa + 2048, _RESPONSE_SIZE, F_WRITE)]
    )


def indirect_outside_ram(queue: DriverQueue) -> int:
    return raw_chain(queue, [Descriptor(_OUTSIDE_RAM, 32, F_INDIRECT)])


BAD_CHAINS: tuple[Callable[[DriverQueue], int], ...] = (
    loop, self_loop, next_out_of_range, empty_buffer, only_writable, only_readable, writable_before_readable,
    request_outside_ram, response_outside_ram, address_wraps, leaves_ram, huge_total, indirect_too_long,
    indirect_loop, indirect_next_out_of_range, indirect_odd_length, indirect_empty, indirect_huge,
    indirect_in_indirect, indirect_with_next, indirect_outside_ram,
)  # fmt: skip
"""All chains above that have a valid head, for parametrised tests. (only_readable, only_writable and
writable_before_readable are odd rather than broken: a device may well answer them.)"""
