"""The bench's driver in C on a real service, and its yardsticks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from bench.limits import BareQueue, CopyRate, end_child, round_trip_us
from bench.ring_driver import RingDriver
from tests.conftest import ServiceFactory
from tests.fake_vmm import Command, FakeVmm, Format, Gpu, GpuCommand, Rect, Resp, commands
from tests.fake_vmm.errors import CommandFailed

_RECT = Rect(16, 16)


@pytest.fixture
def gpu(service_factory: ServiceFactory) -> Iterator[Gpu]:
    with FakeVmm.connect(service_factory(["--engine=null"]).socket_path, control_size=64) as vmm:
        yield vmm.gpu


def life(resource_id: int) -> list[GpuCommand]:
    return [commands.resource_create_2d(resource_id, Format.B8G8R8X8, 16, 16), commands.resource_unref(resource_id)]


@pytest.mark.parametrize("fenced", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batches_do_whole_cycles(gpu: Gpu, batch: int, fenced: bool) -> None:
    cycle = [command for resource_id in (11, 12, 13, 14) for command in life(resource_id)]
    with closing(RingDriver(gpu.control, cycle, fenced=fenced)) as driver:
        for _ in range(2):
            run = driver.batches(batch, 0.005, latencies=True)
            assert run.commands % len(cycle) == 0 and run.commands
            assert len(run.latencies_us) == run.commands // batch
            assert sum(run.latencies_us) <= run.seconds * 1e6 * 1.001
    # No resource is left, and the queue serves its other driver again.
    assert gpu.resource_unref(14).type == Resp.ERR_INVALID_RESOURCE_ID
    gpu.resource_create_2d(14, Format.B8G8R8X8, 16, 16).check()


def test_what_it_sends_is_what_the_fake_vmm_sends(gpu: Gpu) -> None:
    context = gpu.create_context("driven")
    entries = gpu.memory.buffer(4096).segments()
    one_life = [*life(21)[:1], commands.resource_attach_backing(21, entries), *life(21)[1:]]
    stream = [commands.submit_3d(context.ctx_id, bytes(20_000)), commands.ctx_attach_resource(context.ctx_id, 22)]
    gpu.resource_create_2d(22, Format.B8G8R8X8, 16, 16).check()
    for sent in (one_life, stream[:1], stream):
        with closing(RingDriver(gpu.control, sent, fenced=True)) as driver:
            assert driver.batches(len(sent), 0.0).commands == len(sent)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("depth", [1, 5, 32])
def test_window_leaves_nothing_outstanding(gpu: Gpu, depth: int, eager: bool) -> None:
    context = gpu.create_context("driven")
    submits = [commands.submit_3d(context.ctx_id, bytes(64))] * 32
    with closing(RingDriver(gpu.control, submits, fenced=True, eager=eager)) as driver:
        assert driver.batches(depth, 0.005).commands >= 32
        run = driver.window(depth, 0.01)
    assert run.commands >= depth
    assert not gpu.control.outstanding and not gpu.control.reap()
    context.destroy()


def test_a_refused_command_is_named(gpu: Gpu) -> None:
    sent = [*life(31), commands.resource_flush(4711, _RECT)]
    with pytest.raises(CommandFailed, match="RESOURCE_FLUSH was answered ERR_INVALID_RESOURCE_ID"):
        RingDriver(gpu.control, sent, fenced=False).batches(3, 0.0)
    with pytest.raises(CommandFailed, match="command 0x777 was answered"):
        RingDriver(gpu.control, [GpuCommand(0x777)], fenced=False).window(1, 0.0)


def test_what_does_not_fit_is_refused(gpu: Gpu) -> None:
    flush = commands.resource_flush(1, _RECT)
    with pytest.raises(ValueError, match="65 commands for a queue with room for 64"):
        RingDriver(gpu.control, [flush] * 65, fenced=False)
    with pytest.raises(ValueError, match="GET_CAPSET is too long"):
        RingDriver(gpu.control, [GpuCommand(Command.GET_CAPSET, response_size=4096)], fenced=False)
    with closing(RingDriver(gpu.control, [flush], fenced=False)) as driver:
        with pytest.raises(ValueError, match="a batch of 2 of 1"):
            driver.batches(2, 0.0)
        with pytest.raises(ValueError, match="0 of 1 commands"):
            driver.window(0, 0.0)


def test_rings_are_lent_only_when_they_are_empty(gpu: Gpu) -> None:
    with closing(RingDriver(gpu.control, [commands.get_display_info()], fenced=False)) as driver:
        pending = gpu.submit(commands.get_display_info())
        with pytest.raises(RuntimeError, match="1 chains are outstanding"):
            driver.batches(1, 0.0)
        gpu.wait(pending)
        assert driver.batches(1, 0.0).commands == 1


def test_a_bare_queue_answers_everything() -> None:
    with ExitStack() as stack:
        bare = BareQueue(stack, 16)
        with closing(bare.driver([GpuCommand(0x777)] * 16, fenced=True)) as driver:
            assert driver.batches(4, 0.005).commands >= 16
            assert driver.window(16, 0.005).commands >= 16


def test_yardsticks_measure_something() -> None:
    with closing(CopyRate(10_000, 5_000)) as copies:
        assert copies.measure(5_000, 0.001) > 0
        assert copies.measure(64, 0.001) > 0
    p50, p99 = round_trip_us(0.005, (50, 99))
    assert 0 < p50 <= p99


def test_a_helper_that_could_not_be_forked_is_an_error() -> None:
    with pytest.raises(OSError, match="could not be forked"):
        end_child(-1)
