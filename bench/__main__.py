"""`python -m bench` (`make bench`): how fast the service answers a guest, the fake VMM. Prints figures, judges nothing.

Every figure includes the fake VMM's own work on the queues, which is Python and the same for whatever is measured.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from bench.demo.service import service_command
from tests.fake_vmm import BackEndProcess, FakeVmm, commands
from tests.fake_vmm.command_queue import Pending
from tests.fake_vmm.gpu import Gpu
from tests.fake_vmm.scene_player import ScenePlayer
from tests.fake_vmm.virgl.triangle import TriangleScene

WARM_UP = 200
COUNT = 4000
BATCH = 64
FORMAT_B8G8R8A8 = 1


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. rate: commands a second. p50_us: microseconds from kick to answer, where commands go one at a time."""

    what: str
    how: str
    rate: float
    p50_us: float | None = None


def one_at_a_time(gpu: Gpu, what: str, submit: Callable[[int], Pending]) -> Figure:
    """Each command waits for the answer of the one before."""
    for number in range(WARM_UP):
        gpu.wait(submit(number)).check(what)
    times = []
    for number in range(COUNT // 4):
        started = time.perf_counter()
        gpu.wait(submit(number)).check(what)
        times.append(time.perf_counter() - started)
    return Figure(what, "one at a time", len(times) / sum(times), statistics.median(times) * 1e6)


def in_batches(gpu: Gpu, what: str, submit: Callable[[int], Pending]) -> Figure:
    """One kick for BATCH commands."""
    started = 0.0
    for start in range(-BATCH, COUNT, BATCH):
        if start == 0:
            started = time.perf_counter()
        with gpu.batch():
            batch = [submit(number) for number in range(start, start + BATCH)]
        for response in gpu.wait_all(batch):
            response.check(what)
    done = -(-COUNT // BATCH) * BATCH
    return Figure(what, f"{BATCH} at a time", done / (time.perf_counter() - started))


def measure(vmm: FakeVmm) -> list[Figure]:
    """All workloads on a booted VM."""
    gpu = vmm.gpu
    player = ScenePlayer(gpu, TriangleScene("bench"))
    resource = gpu.create_resource_2d(64, 64)
    ids = [gpu.new_resource_id() for _ in range(BATCH)]

    def display_info(_number: int) -> Pending:
        return gpu.submit(commands.get_display_info())

    def transfer(_number: int) -> Pending:
        return gpu.submit(commands.transfer_to_host_2d(resource.resource_id, resource.rect))

    def create_and_unref(number: int) -> Pending:
        resource_id = ids[number // 2 % BATCH]
        if number % 2:
            return gpu.submit(commands.resource_unref(resource_id))
        return gpu.submit(commands.resource_create_2d(resource_id, FORMAT_B8G8R8A8, 16, 16))

    def draw(number: int) -> Pending:
        return player.frame(0, number, fenced=False)

    def draw_fenced(number: int) -> Pending:
        return player.frame(0, number)

    figures = []
    for what, submit in (
        ("GET_DISPLAY_INFO", display_info),
        ("RESOURCE_CREATE_2D, RESOURCE_UNREF", create_and_unref),
        ("TRANSFER_TO_HOST_2D of 64x64", transfer),
        ("SUBMIT_3D, one triangle", draw),
        ("SUBMIT_3D, one triangle, fenced", draw_fenced),
    ):
        figures += [one_at_a_time(gpu, what, submit), in_batches(gpu, what, submit)]
    player.destroy()
    return figures


def main() -> int:
    """Exit code: 0 once everything is measured."""
    console = Console()
    with BackEndProcess(service_command()) as service:
        with FakeVmm.connect(service.socket_path, display=False, timeout=120) as vmm:
            figures = measure(vmm)
        rendering = next((line for line in service.log.splitlines() if "rendering by" in line), "")
    table = Table("commands", "how", title=f"{platform.machine()}, {os.cpu_count()} CPUs; {rendering}")
    table.add_column("a second", justify="right")
    table.add_column("p50 µs", justify="right")
    for figure in figures:
        p50 = "" if figure.p50_us is None else f"{figure.p50_us:,.0f}"
        table.add_row(figure.what, figure.how, f"{figure.rate:,.0f}", p50)
    console.print(table)
    console.print("isorend alone: there is no comparison with other renderers yet.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
