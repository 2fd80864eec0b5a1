"""Runs a scene on libvirglrenderer in this process, without any service: proof that the streams themselves are right.

The library is loaded through cffi's ABI mode and driven as a VMM does it (``virglrenderer.h``, stable API): resources
with guest memory attached, transfers, submitted streams. One process drives one renderer; tests start it as

    python -m tests.fake_vmm.virgl.direct MODULE:FACTORY --times 0,0.5 --out FILE.npz

which leaves pictures (height, width, 3: red, green, blue) and the guest memory of buffers in FILE.npz and prints one
JSON line of figures.
"""

import argparse
import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cffi
import numpy as np
import numpy.typing as npt

from tests.fake_vmm.virgl.protocol import Format, Target
from tests.fake_vmm.virgl.resources import Box, Resource
from tests.fake_vmm.virgl.scene import Scene

Pixels = npt.NDArray[np.uint8]
"""A picture: (height, width, 3), red, green, blue."""

USE_EGL = 1 << 0
USE_SURFACELESS = 1 << 3

_COMPLAINTS = ("context error", "GL error", "shader failed to")
"""What vrend writes to standard error when a stream is wrong but the call that carried it was answered well."""

_CDEF = """
struct iovec { void *iov_base; size_t iov_len; };
struct virgl_box { uint32_t x, y, z, w, h, d; };
struct virgl_renderer_callbacks {
    int version;
    void (*write_fence)(void *cookie, uint32_t fence);
    void *create_gl_context;
    void *destroy_gl_context;
    void *make_current;
    void *get_drm_fd;
};
struct virgl_renderer_resource_create_args {
    uint32_t handle, target, format, bind, width, height, depth, array_size, last_level, nr_samples, flags;
};
int virgl_renderer_init(void *cookie, int flags, struct virgl_renderer_callbacks *cb);
void virgl_renderer_cleanup(void *cookie);
void virgl_renderer_poll(void);
int virgl_renderer_context_create(uint32_t handle, uint32_t nlen, const char *name);
void virgl_renderer_context_destroy(uint32_t handle);
int virgl_renderer_resource_create(struct virgl_renderer_resource_create_args *args, struct iovec *iov, uint32_t n);
int virgl_renderer_resource_attach_iov(int res_handle, struct iovec *iov, int num_iovs);
void virgl_renderer_ctx_attach_resource(int ctx_id, int res_handle);
int virgl_renderer_submit_cmd(void *buffer, int ctx_id, int ndw);
int virgl_renderer_create_fence(int client_fence_id, uint32_t ctx_id);
int virgl_renderer_transfer_read_iov(uint32_t handle, uint32_t ctx_id, uint32_t level, uint32_t stride,
    uint32_t layer_stride, struct virgl_box *box, uint64_t offset, struct iovec *iov, int iovec_cnt);
int virgl_renderer_transfer_write_iov(uint32_t handle, uint32_t ctx_id, int level, uint32_t stride,
    uint32_t layer_stride, struct virgl_box *box, uint64_t offset, struct iovec *iov, unsigned int iovec_cnt);
"""


class VirglError(Exception):
    """libvirglrenderer refused a call."""


class DirectRenderer:
    """One virgl context in this process. ``memory[resid]`` is the guest memory attached to a resource."""

    def __init__(self, name: str, context: int = 1) -> None:
        """Raises VirglError if the renderer or the context cannot be made, OSError without the library."""
        self._ffi = ffi = cffi.FFI()
        ffi.cdef(_CDEF)
        self._lib = cast(Any, ffi.dlopen("libvirglrenderer.so.1"))
        self._context = context
        self._last_fence = 0
        self._fences = itertools.count(1)
        self.resources: list[Resource] = []
        self.memory: dict[int, memoryview] = {}
        self._keep: list[Any] = []
        self._write_fence = ffi.callback("void(void *, uint32_t)", self._on_fence)
        self._callbacks = ffi.new("struct virgl_renderer_callbacks *", {"version": 1, "write_fence": self._write_fence})
        self._cookie = ffi.new("int *")
        self._check(self._lib.virgl_renderer_init(self._cookie, USE_EGL | USE_SURFACELESS, self._callbacks), "init")
        debug_name = name.encode()
        self._check(self._lib.virgl_renderer_context_create(context, len(debug_name), debug_name), "context_create")

    def _on_fence(self, _cookie: object, fence: int) -> None:
        self._last_fence = fence

    @staticmethod
    def _check(result: int, what: str) -> None:
        if result != 0:
            raise VirglError(f"virgl_renderer_{what} answered {result}")

    def close(self) -> None:
        self._lib.virgl_renderer_context_destroy(self._context)
        self._lib.virgl_renderer_cleanup(self._cookie)

    def create(self, resource: Resource) -> None:
        """Create a resource, give it zeroed guest memory and attach it to the context."""
        ffi = self._ffi
        names = "target format bind width height depth array_size last_level nr_samples flags"
        values = {field: int(getattr(resource, field)) for field in names.split()}
        args: Any = ffi.new("struct virgl_renderer_resource_create_args *", {**values, "handle": resource.resid})
        self._check(self._lib.virgl_renderer_resource_create(args, ffi.NULL, 0), f"resource_create({resource})")
        backing = ffi.new("char[]", resource.backing_size)
        iov = ffi.new("struct iovec[1]", [(backing, resource.backing_size)])
        self._keep += [backing, iov]
        self.resources.append(resource)
        self.memory[resource.resid] = memoryview(ffi.buffer(backing))
        self._check(self._lib.virgl_renderer_resource_attach_iov(resource.resid, iov, 1), "resource_attach_iov")
        self._lib.virgl_renderer_ctx_attach_resource(self._context, resource.resid)

    def transfer_to_host(self, resource: Resource, box: Box | None = None) -> None:
        """Send a box (level 0, the whole of it by default) from guest memory to the host."""
        self._transfer(self._lib.virgl_renderer_transfer_write_iov, resource, box)

    def transfer_from_host(self, resource: Resource, box: Box | None = None) -> None:
        """Bring a box (level 0, the whole of it by default) from the host to guest memory."""
        self._transfer(self._lib.virgl_renderer_transfer_read_iov, resource, box)

    def _transfer(self, call: Callable[..., int], resource: Resource, box: Box | None) -> None:
        box = resource.box if box is None else box
        offset = box.y * resource.stride + box.x * resource.format.size
        c_box = self._ffi.new("struct virgl_box *", tuple(box))
        null = self._ffi.NULL
        stride = resource.stride if resource.height > 1 else 0
        self._check(call(resource.resid, self._context, 0, stride, 0, c_box, offset, null, 0), "transfer")

    def submit(self, stream: bytes) -> None:
        """Run a command stream. Raises VirglError if the decoder refuses it."""
        data = self._ffi.new("char[]", stream)
        self._check(self._lib.virgl_renderer_submit_cmd(data, self._context, len(stream) // 4), "submit_cmd")

    def finish(self, timeout_seconds: float = 60.0) -> None:
        """Wait until everything submitted so far is done. Raises TimeoutError."""
        fence = next(self._fences)
        self._check(self._lib.virgl_renderer_create_fence(fence, self._context), "create_fence")
        deadline = time.monotonic() + timeout_seconds
        while self._last_fence < fence:
            self._lib.virgl_renderer_poll()
            if time.monotonic() > deadline:
                raise TimeoutError(f"fence {fence} did not retire")

    def picture(self, resource: Resource) -> Pixels:
        """Read a colour resource back."""
        self.transfer_from_host(resource)
        return pixels_of(resource, self.memory[resource.resid])


def pixels_of(resource: Resource, data: bytes | memoryview) -> Pixels:
    """The picture in the tightly packed memory of a 32-bit colour resource. Raises ValueError for other formats."""
    texels = np.frombuffer(data, np.uint8).reshape(resource.height, resource.width, 4)
    match resource.format:
        case Format.B8G8R8A8_UNORM | Format.B8G8R8X8_UNORM:
            return texels[:, :, 2::-1].copy()
        case Format.R8G8B8A8_UNORM | Format.R8G8B8X8_UNORM:
            return texels[:, :, :3].copy()
    raise ValueError(f"no picture in {resource.format!r}")


def prepare(renderer: DirectRenderer, scene: Scene) -> None:
    """Create the scene's resources, upload its data and run its set-up."""
    for resource in scene.resources(itertools.count(1).__next__):
        renderer.create(resource)
    for resource, data, box in scene.uploads():
        renderer.memory[resource.resid][: len(data)] = data
        renderer.transfer_to_host(resource, box)
    renderer.submit(scene.setup())


def load_scene(spec: str) -> Scene:
    """``MODULE:FACTORY`` to a scene."""
    module, _, factory = spec.partition(":")
    return cast(Scene, getattr(importlib.import_module(module), factory)())


@dataclass(frozen=True, slots=True)
class Rendering:
    """What a subprocess left: pictures in the order of the times, guest memory of buffers by resid, figures."""

    pictures: list[Pixels]
    buffers: dict[int, bytes]
    figures: dict[str, Any]


def render_in_subprocess(spec: str, times: Sequence[float], out: Path, *, bench_frames: int = 0) -> Rendering:
    """Render ``spec`` at ``times`` in a fresh process; ``out`` is the file to use.

    Raises VirglError if the process fails, or if vrend reports an error on its standard error.
    """
    command = [sys.executable, "-m", "tests.fake_vmm.virgl.direct", spec, "--out", str(out)]
    command += ["--times", ",".join(map(repr, times)), "--bench", str(bench_frames)]
    environment = {**os.environ, "MESA_SHADER_CACHE_DISABLE": "true"}
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0 or any(sign in done.stderr for sign in _COMPLAINTS):
        raise VirglError(f"{spec} ended with {done.returncode}:\n{done.stderr}")
    with np.load(out) as saved:
        pictures = [saved[f"picture_{index}"] for index in range(len(times))]
        names = [name for name in saved if name.startswith("buffer_")]
        buffers = {int(name.removeprefix("buffer_")): saved[name].tobytes() for name in names}
    return Rendering(pictures, buffers, json.loads(done.stdout.splitlines()[-1]))


def _render(renderer: DirectRenderer, scene: Scene, times: Sequence[float]) -> dict[str, npt.NDArray[np.uint8]]:
    """Pictures and buffers under the names that render_in_subprocess reads."""
    out: dict[str, npt.NDArray[np.uint8]] = {}
    for index, t in enumerate(times):
        renderer.submit(scene.frame(t, index))
        renderer.finish()
        out[f"picture_{index}"] = renderer.picture(scene.target)
    for resource in renderer.resources:
        if resource.target is Target.BUFFER:
            out[f"buffer_{resource.resid}"] = np.frombuffer(renderer.memory[resource.resid], np.uint8)
    return out


def _bench(renderer: DirectRenderer, scene: Scene, frames: int) -> dict[str, float]:
    """Frames per second and processor milliseconds per frame (of all threads), with a fence after each frame."""
    start, cpu = time.perf_counter(), time.process_time()
    for index in range(frames):
        renderer.submit(scene.frame(index / 60, index))
        renderer.finish()
    wall, busy = time.perf_counter() - start, time.process_time() - cpu
    return {"fps": round(frames / wall, 1), "cpu_ms_per_frame": round(1e3 * busy / frames, 2)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Render a scene with libvirglrenderer in this process.")
    parser.add_argument("scene", help="MODULE:FACTORY of a scene")
    parser.add_argument("--times", default="0", help="seconds, comma-separated")
    parser.add_argument("--out", required=True, help=".npz file for the pictures and buffers")
    parser.add_argument("--bench", type=int, default=0, help="draw so many further frames and print the rate")
    options = parser.parse_args(arguments)
    scene = load_scene(options.scene)
    renderer = DirectRenderer(scene.name)
    prepare(renderer, scene)
    saved = _render(renderer, scene, [float(t) for t in options.times.split(",")])
    np.savez(options.out, allow_pickle=False, **saved)
    figures = _bench(renderer, scene, options.bench) if options.bench else {}
    print(json.dumps({"scene": scene.name, **figures}), flush=True)
    renderer.close()


if __name__ == "__main__":
    main()
