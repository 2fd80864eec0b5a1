"""The EGL display a GL worker draws on, and which device is behind it.

PyOpenGL owns this; virglrenderer is handed the display and a config and makes its contexts there. Nothing here may be
called before the fork: the first call loads the vendor's driver. What the display can do is found out by `egl_probe`.

Without a render node the display is EGL_MESA_platform_surfaceless, which takes a software renderer when there is no
GPU, else that of an EGLDevice (EGL_EXT_platform_device), as NVIDIA's driver has no surfaceless platform.
"""

import ctypes
import os
from dataclasses import dataclass
from typing import Any

from OpenGL import EGL
from OpenGL.EGL.EXT.device_enumeration import eglQueryDevicesEXT
from OpenGL.EGL.EXT.device_query import eglQueryDeviceStringEXT
from OpenGL.error import Error as OpenGLError

from context_worker.engine import EngineError

# Khronos' registry of EGL numbers; these are of extensions, which PyOpenGL spreads over many modules.
EGL_PLATFORM_SURFACELESS_MESA = 0x31DD
EGL_PLATFORM_DEVICE_EXT = 0x313F
EGL_DRM_RENDER_NODE_FILE_EXT = 0x3377

_MAX_DEVICES = 32


@dataclass(frozen=True)
class EglDisplay:
    """An initialised display. `handle` and `config` are PyOpenGL's pointers, `extensions` those of the display."""

    handle: Any
    config: Any
    extensions: frozenset[str]
    gles: bool
    is_render_node: bool

    @property
    def address(self) -> int:
        """The EGLDisplay, as C takes it."""
        return ctypes.cast(self.handle, ctypes.c_void_p).value or 0

    @property
    def config_address(self) -> int:
        """The EGLConfig, as C takes it."""
        return ctypes.cast(self.config, ctypes.c_void_p).value or 0


def _words(text: bytes | None) -> frozenset[str]:
    return frozenset((text or b"").decode("ascii", "replace").split())


def _client_extensions() -> frozenset[str]:
    return _words(EGL.eglQueryString(EGL.EGL_NO_DISPLAY, EGL.EGL_EXTENSIONS))


def _devices() -> list[tuple[Any, str]]:
    """All EGLDevices, each with the path of its render node (empty for one without, such as a software renderer)."""
    pointers = (EGL.EGLDeviceEXT * _MAX_DEVICES)()
    count = ctypes.c_int32()
    eglQueryDevicesEXT(_MAX_DEVICES, pointers, ctypes.byref(count))
    found = []
    for device in pointers[: count.value]:
        path = b""
        if "EGL_EXT_device_drm_render_node" in _words(eglQueryDeviceStringEXT(device, EGL.EGL_EXTENSIONS)):
            path = eglQueryDeviceStringEXT(device, EGL_DRM_RENDER_NODE_FILE_EXT) or b""
        found.append((device, os.fsdecode(path)))
    return found


def _device_display(render_node: str | None) -> Any:
    devices = _devices()
    for device, path in devices:
        if render_node is None or (path and os.path.realpath(path) == os.path.realpath(render_node)):
            return EGL.eglGetPlatformDisplay(EGL_PLATFORM_DEVICE_EXT, device, None)
    paths = ", ".join(path for _, path in devices if path) or "none"
    raise EngineError(f"EGL knows no device for {render_node} (render nodes it knows: {paths})")


def _get_display(render_node: str | None) -> Any:
    extensions = _client_extensions()
    if render_node is None and "EGL_MESA_platform_surfaceless" in extensions:
        return EGL.eglGetPlatformDisplay(EGL_PLATFORM_SURFACELESS_MESA, ctypes.c_void_p(0), None)
    if "EGL_EXT_platform_device" not in extensions:
        raise EngineError("EGL has neither EGL_MESA_platform_surfaceless nor EGL_EXT_platform_device")
    return _device_display(render_node)


def _choose_config(display: Any) -> tuple[Any, bool]:
    """A config for contexts without surfaces, and whether it is one of OpenGL ES, which is the second choice."""
    for renderable, gles in ((EGL.EGL_OPENGL_BIT, False), (EGL.EGL_OPENGL_ES2_BIT, True)):
        wanted = (ctypes.c_int32 * 5)(EGL.EGL_SURFACE_TYPE, 0, EGL.EGL_RENDERABLE_TYPE, renderable, EGL.EGL_NONE)
        configs, count = (EGL.EGLConfig * 1)(), ctypes.c_int32()
        if EGL.eglChooseConfig(display, wanted, configs, 1, ctypes.byref(count)) and count.value:
            return configs[0], gles
    raise EngineError("EGL has no config for OpenGL")


def open_display(render_node: str | None = None) -> EglDisplay:
    """Open and initialise the display of `render_node`, or the default one. Raises EngineError."""
    try:
        handle = _get_display(render_node)
        major, minor = ctypes.c_int32(), ctypes.c_int32()
        if not handle or not EGL.eglInitialize(handle, ctypes.byref(major), ctypes.byref(minor)):
            raise EngineError("eglInitialize failed")
        if (major.value, minor.value) < (1, 5):
            raise EngineError(f"EGL {major.value}.{minor.value} is older than 1.5")
        extensions = _words(EGL.eglQueryString(handle, EGL.EGL_EXTENSIONS))
        if "EGL_KHR_surfaceless_context" not in extensions:
            raise EngineError("EGL has no EGL_KHR_surfaceless_context")
        config, gles = _choose_config(handle)
    except OpenGLError as error:
        raise EngineError(f"EGL failed: {error}") from error
    return EglDisplay(handle, config, extensions, gles, is_render_node=render_node is not None)
