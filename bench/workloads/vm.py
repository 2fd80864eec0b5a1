"""g. A whole VM: GL programs in a Debian guest under QEMU (TCG), on isorend against QEMU's in-process virtio-gpu-gl.

Both VMs are the same QEMU and guest with one CPU, and both render with the same Mesa and the same virglrenderer: the
service is built and runs in the Debian root that QEMU runs in. One is stopped by QMP while the other is measured.

Their displays cannot be the same. virtio-gpu-gl needs a GL display: it has SDL's, which without a screen draws to a
buffer of its own (a window on Xvfb is as fast: gtk, or half as fast: sdl). vhost-user-gpu demands a display that takes
dma-bufs, which software GL has not, or none: it has none, and QEMU gets every frame as pixels. So each side copies what
it shows once. Off-screen cases show nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.vm_service import start_service
from bench.workload import Better, Settings, Step, WorkloadUnavailable
from tests.vm.debian_root import LabError
from tests.vm.debian_tree import DebianTree
from tests.vm.lab import Lab
from tests.vm.qemu import Vm
from tests.vm.qemu_process import QemuHost
from tests.vm.recipe import GL_ROOT, Recipe

PEER_DISPLAY, PEER_ENVIRONMENT = "sdl,gl=on", {"SDL_VIDEODRIVER": "offscreen"}
PROGRAM_TIMEOUT_S = 300.0

# What glmark2 is asked to draw, by what it calls it in its report.
_OFF_SCREEN_SCENES = {"build": "build:use-vbo=true", "buffer": "buffer"}

_RENDERER = re.compile(r"renderer: \"(?P<renderer>.+)\"")
# kmscube says this every two seconds and at its end; every line counts from the first frame.
_RENDERED = re.compile(r"^Rendered \d+ frames in [\d.]+ sec \((?P<rate>[\d.]+) fps\)", re.MULTILINE)
_SCENE = re.compile(r"^\[(?P<scene>\w+)\].* FPS: (?P<rate>\d+) FrameTime: (?P<ms>[\d.]+) ms", re.MULTILINE)
_SURFACE = re.compile(r"Surface Size: +(?P<size>\d+x\d+)")


class GuestFailure(Exception):
    """A program in a guest failed, or the two VMs are not alike; the message has the program's output."""


@dataclass(frozen=True)
class GuestPrograms:
    """What is run in a stopped VM, which goes on meanwhile. frames: kmscube's; seconds: of each glmark2 scene."""

    vm: Vm
    frames: int
    seconds: int

    def kmscube(self) -> Mapping[str, float]:
        """Frames a second on the whole display."""
        rates = _RENDERED.findall(self._run(f"exec kmscube -c {self.frames}"))
        if not rates:
            raise GuestFailure("kmscube did not say how fast it was")
        return {"kmscube": float(rates[-1])}

    def off_screen(self) -> Mapping[str, float]:
        """Frames a second of glmark2's scenes into a buffer that is not shown."""
        return {
            f"glmark2 {scene}, off-screen": rate
            for scene, rate in self._glmark2("--off-screen", _OFF_SCREEN_SCENES).items()
        }

    def whole_display(self) -> Mapping[str, float]:
        """The same for one scene on the display, in its largest mode, which is glmark2's choice."""
        # virtio-gpu's display takes no alpha channel.
        scenes = self._glmark2("--visual-config alpha=0", {"build": _OFF_SCREEN_SCENES["build"]})
        return {f"glmark2 {scene}, display": rate for scene, rate in scenes.items()}

    def surroundings(self) -> Mapping[str, str]:
        """What has to be the same in both VMs: GL renderer, the display's mode, what glmark2 calls its surface."""
        cube = self._run("cat /sys/class/graphics/fb0/virtual_size; exec kmscube -c 2")
        surface = self._run("exec glmark2-es2-drm --visual-config alpha=0 -b build:duration=0.1")
        renderer, size = _RENDERER.search(cube), _SURFACE.search(surface)
        if renderer is None or size is None:
            raise GuestFailure(f"no GL in the guest:\n{cube}\n{surface}")
        return {"renderer": renderer["renderer"], "mode": cube.splitlines()[0], "surface": size["size"]}

    def _glmark2(self, options: str, scenes: Mapping[str, str]) -> dict[str, float]:
        arguments = " ".join(f"-b {scene}:duration={self.seconds}" for scene in scenes.values())
        output = self._run(f"exec glmark2-es2-drm {options} {arguments}")
        # The frame time has more digits than the rate.
        rates = {match["scene"]: 1000 / float(match["ms"]) for match in _SCENE.finditer(output)}
        if rates.keys() != scenes.keys() or "Error" in output:
            raise GuestFailure(f"glmark2 failed:\n{output[-2000:]}")
        return rates

    def _run(self, script: str) -> str:
        with self._going():
            code, output = self.vm.run(script, PROGRAM_TIMEOUT_S)
        if code != 0:
            raise GuestFailure(f"{script!r} ended with {code}:\n{output[-2000:]}")
        return output

    @contextmanager
    def _going(self) -> Iterator[None]:
        self.vm.qmp.execute("cont")
        yield
        self.vm.qmp.execute("stop")


class VmWorkload:
    """See the module."""

    name = "vm"
    summary = "kmscube and glmark2 in a Debian guest under QEMU (TCG), against virtio-gpu-gl in process"
    unit = "frames/s"
    better: Better = "higher"

    def open(self, settings: Settings, stack: ExitStack) -> Sequence[Step]:
        """Builds the lab and the root with QEMU's GL display if they are not there (minutes), boots both VMs."""
        lab, tree = Lab.of(Recipe()), DebianTree.of(GL_ROOT)
        try:
            lab.build()
            tree.build()
            service = start_service(tree, stack)
        except LabError as reason:
            raise WorkloadUnavailable(str(reason)) from None
        frames, seconds = (40, 1) if settings.quick else (300, 4)

        def boot(vm: Vm) -> GuestPrograms:
            stack.enter_context(vm).qmp.execute("stop")
            return GuestPrograms(vm, frames, seconds)

        ours = boot(Vm(lab, service.socket_path, cpus=1, host=QemuHost(tree.root)))
        peer_host = QemuHost(tree.root, PEER_DISPLAY, PEER_ENVIRONMENT)
        peer = boot(Vm(lab, gpu="virtio-gpu-gl-pci", cpus=1, host=peer_host))
        here, there = ours.surroundings(), peer.surroundings()
        if here != there:
            raise GuestFailure(f"the VMs are not alike: {here} with isorend, {there} with virtio-gpu-gl")
        version = peer.vm.qmp.execute("query-version")["qemu"]
        peer_name = f"virtio-gpu-gl-pci, QEMU {version['major']}.{version['minor']}.{version['micro']}"
        pairs: list[tuple[str, Callable[[], Mapping[str, float]], Callable[[], Mapping[str, float]]]] = [
            ("kmscube", ours.kmscube, peer.kmscube),
            ("glmark2, off-screen", ours.off_screen, peer.off_screen),
            ("glmark2, display", ours.whole_display, peer.whole_display),
        ]
        return [Step(name, mine, theirs, peer_name) for name, mine, theirs in pairs]


WORKLOAD = VmWorkload()
