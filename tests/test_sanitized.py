"""A guest's session on native modules with sanitizers in them: the master's data plane, the workers' engines."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from tests import sanitized
from tests.conftest import ServiceFactory
from tests.fake_vmm import FakeVmm
from tests.fake_vmm.scene_player import ScenePlayer
from tests.fake_vmm.virgl.triangle import TriangleScene
from tests.fake_vmm.wire import Rect
from tests.vm.workers import context_workers

FRAMES = 20


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return sanitized.environment()


def draw_2d(vmm: FakeVmm) -> None:
    """A picture in scattered pages, shown whole and in part."""
    picture = vmm.gpu.create_resource_2d(333, 77, scattered=True)
    pixels = np.random.default_rng(1).bytes(4 * 333 * 77)
    picture.upload_2d(pixels)
    picture.show()
    vmm.gpu.flush(picture.resource_id, Rect(13, 7, x=300, y=70), fenced=True).check()
    assert vmm.display is not None
    display = vmm.display

    def arrived() -> bool:
        framebuffer = display.framebuffer()
        return framebuffer is not None and framebuffer.tobytes() == pixels

    display.wait_for(arrived, "the picture")
    picture.unref()


def play_one(vmm: FakeVmm) -> npt.NDArray[np.uint8]:
    """The picture of a new context."""
    player = ScenePlayer(vmm.gpu, TriangleScene("another"))
    vmm.gpu.wait(player.frame(0, 0)).check()
    return player.picture()


def mapped_modules(pid: int) -> set[Path]:
    """Our extension modules in a process."""
    return {Path(region.path) for region in psutil.Process(pid).memory_maps() if "/native/_" in region.path}


def test_a_session_gives_no_report(service_factory: ServiceFactory, environment: dict[str, str]) -> None:
    service = service_factory(["--spares=1"], env=environment)
    with FakeVmm.connect(service.socket_path, timeout=120) as vmm:
        draw_2d(vmm)
        players = [ScenePlayer(vmm.gpu, TriangleScene(name)) for name in ("one", "two")]
        for number in range(FRAMES):
            for player in players:
                vmm.gpu.wait(player.frame(number / FRAMES, number)).check()
        for player in players:
            player.show()
            vmm.gpu.wait(player.flush()).check()
            assert len(np.unique(player.picture().reshape(-1, 3), axis=0)) == 2
        assert mapped_modules(service.pid) == set(sanitized.TREE.glob("native/_dataplane.*.so"))
        if os.geteuid() == 0:  # nobody else may look into a worker
            worker = context_workers(service.pid)[0]
            assert mapped_modules(worker.pid) >= set(sanitized.TREE.glob("native/_engines.*.so"))
        vmm.reboot()
        draw_2d(vmm)
        ScenePlayer(vmm.gpu, TriangleScene("three")).destroy()
    assert service.stop() == 0
    assert sanitized.reports(service.log) == []
    assert "Traceback" not in service.log


def test_a_worker_killed_at_work_gives_no_report(service_factory: ServiceFactory, environment: dict[str, str]) -> None:
    service = service_factory(["--spares=0"], env=environment)
    with FakeVmm.connect(service.socket_path, timeout=120) as vmm:
        player = ScenePlayer(vmm.gpu, TriangleScene("victim"))
        vmm.gpu.wait(player.frame(0, 0)).check()
        (worker,) = context_workers(service.pid)
        psutil.Process(worker.pid).suspend()
        waiting = [player.frame(0, number) for number in range(8)]
        psutil.Process(worker.pid).kill()
        assert not any(response.ok for response in vmm.gpu.wait_all(waiting))
        draw_2d(vmm)
        assert len(np.unique(play_one(vmm).reshape(-1, 3), axis=0)) == 2
    assert service.stop() == 0
    assert sanitized.reports(service.log) == []


def test_reports_are_recognised(tmp_path: Path) -> None:
    """The words by which the tests above find a report are those that this compiler's sanitizers say."""
    program = tmp_path / "wrong.c"
    program.write_text(
        "#include <stdlib.h>\n"
        "int main(int argc, char **argv) {\n"
        "    int huge = 0x7fffffff; (void)argv; huge += argc;\n"
        "    char *freed = malloc(8); free(freed); return freed[argc] + huge;\n"
        "}\n"
    )
    flags = ["-fsanitize=address,undefined", "-fsanitize-recover=undefined", "-w", "-o", str(tmp_path / "wrong")]
    subprocess.run(["cc", *flags, str(program)], check=True)
    result = subprocess.run([tmp_path / "wrong"], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    found = sanitized.reports(result.stderr)
    assert any("runtime error: signed integer overflow" in line for line in found)
    assert any("AddressSanitizer: heap-use-after-free" in line for line in found)
