"""The EGL display a GL worker draws on: which device, what it can do, and a first drawing to prove it.

PyOpenGL owns this; virglrenderer is handed the display and a config and makes its contexts there. Nothing here may be
called before the fork: the first call loads the vendor's driver.

Without a render node the display is EGL_MESA_platform_surfaceless, which takes a software renderer when there is no
GPU, else that of an EGLDevice (EGL_EXT_platform_device), as NVIDIA's driver has no surfaceless platform.
"""

import ctypes
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from OpenGL import EGL, GL
from OpenGL.EGL.EXT.device_enumeration import eglQueryDevicesEXT
from OpenGL.EGL.EXT.device_query import eglQueryDeviceStringEXT
from OpenGL.EGL.KHR.image_base import eglCreateImageKHR, eglDestroyImageKHR
from OpenGL.error import EGLError
from OpenGL.error import Error as OpenGLError

from context_worker.engine import Description, EngineError
from ipc.messages import Capability

# Khronos' registry of EGL numbers; these are of extensions, which PyOpenGL spreads over many modules.
EGL_PLATFORM_SURFACELESS_MESA = 0x31DD
EGL_PLATFORM_DEVICE_EXT = 0x313F
EGL_DRM_RENDER_NODE_FILE_EXT = 0x3377
EGL_LINUX_DMA_BUF_EXT = 0x3270
EGL_LINUX_DRM_FOURCC_EXT = 0x3271
EGL_DMA_BUF_PLANE0_FD_EXT = 0x3272
EGL_DMA_BUF_PLANE0_OFFSET_EXT = 0x3273
EGL_DMA_BUF_PLANE0_PITCH_EXT = 0x3274
DRM_FORMAT_ARGB8888 = int.from_bytes(b"AR24", "little")

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


@contextmanager
def _current_context(display: EglDisplay) -> Iterator[None]:
    """A GL context of our own, current within; then what was current before, because virglrenderer relies on it."""
    EGL.eglBindAPI(EGL.EGL_OPENGL_ES_API if display.gles else EGL.EGL_OPENGL_API)
    wanted = (ctypes.c_int32 * 3)(EGL.EGL_CONTEXT_MAJOR_VERSION, 3, EGL.EGL_NONE)
    context = EGL.eglCreateContext(display.handle, display.config, EGL.EGL_NO_CONTEXT, wanted)
    if not context:
        raise EngineError("eglCreateContext failed")
    before = EGL.eglGetCurrentContext()
    EGL.eglMakeCurrent(display.handle, EGL.EGL_NO_SURFACE, EGL.EGL_NO_SURFACE, context)
    try:
        yield
    finally:
        EGL.eglMakeCurrent(display.handle, EGL.EGL_NO_SURFACE, EGL.EGL_NO_SURFACE, before or EGL.EGL_NO_CONTEXT)
        EGL.eglDestroyContext(display.handle, context)


@contextmanager
def _framebuffer(texture: int) -> Iterator[None]:
    framebuffer = ctypes.c_uint32()
    GL.glGenFramebuffers(1, ctypes.byref(framebuffer))
    GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, framebuffer.value)
    GL.glFramebufferTexture2D(GL.GL_FRAMEBUFFER, GL.GL_COLOR_ATTACHMENT0, GL.GL_TEXTURE_2D, texture, 0)
    try:
        yield
    finally:
        GL.glDeleteFramebuffers(1, ctypes.byref(framebuffer))


@contextmanager
def _texture() -> Iterator[int]:
    texture = ctypes.c_uint32()
    GL.glGenTextures(1, ctypes.byref(texture))
    GL.glBindTexture(GL.GL_TEXTURE_2D, texture.value)
    try:
        yield texture.value
    finally:
        GL.glDeleteTextures(1, ctypes.byref(texture))


def _clear(width: int, height: int) -> None:
    GL.glViewport(0, 0, width, height)
    GL.glClearColor(1.0, 0.0, 1.0, 1.0)
    GL.glClear(GL.GL_COLOR_BUFFER_BIT)


def _draws() -> bool:
    """Clear a small texture and read a pixel back: the driver's threads exist after this."""
    pixel = (ctypes.c_uint8 * 4)()
    with _texture() as texture:
        GL.glTexImage2D(GL.GL_TEXTURE_2D, 0, GL.GL_RGBA8, 16, 16, 0, GL.GL_RGBA, GL.GL_UNSIGNED_BYTE, None)
        with _framebuffer(texture):
            _clear(16, 16)
            GL.glReadPixels(8, 8, 1, 1, GL.GL_RGBA, GL.GL_UNSIGNED_BYTE, pixel)
    return bytes(pixel) == b"\xff\x00\xff\xff"


def _image_target_texture(image: Any) -> None:
    """glEGLImageTargetTexture2DOES for the bound GL_TEXTURE_2D. PyOpenGL offers it for OpenGL ES alone."""
    address = ctypes.cast(EGL.eglGetProcAddress(b"glEGLImageTargetTexture2DOES"), ctypes.c_void_p).value
    if not address:
        raise EngineError("EGL has no glEGLImageTargetTexture2DOES")
    function = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_void_p)(address)
    function(GL.GL_TEXTURE_2D, ctypes.cast(image, ctypes.c_void_p))


def _import_memory(display: EglDisplay, fd: int, width: int, height: int, pitch: int) -> Any:
    """An EGLImage of ARGB8888 pixels in `fd`, None if the driver does not take such memory."""
    attributes = {
        EGL.EGL_WIDTH: width,
        EGL.EGL_HEIGHT: height,
        EGL_LINUX_DRM_FOURCC_EXT: DRM_FORMAT_ARGB8888,
        EGL_DMA_BUF_PLANE0_FD_EXT: fd,
        EGL_DMA_BUF_PLANE0_OFFSET_EXT: 0,
        EGL_DMA_BUF_PLANE0_PITCH_EXT: pitch,
    }
    flat = [word for pair in attributes.items() for word in pair]
    words = (ctypes.c_int32 * (len(flat) + 1))(*flat, EGL.EGL_NONE)
    try:
        return eglCreateImageKHR(display.handle, EGL.EGL_NO_CONTEXT, EGL_LINUX_DMA_BUF_EXT, None, words) or None
    except EGLError:
        return None  # a driver that wants a real dma-buf says so by an error


def _draws_into_memfd(display: EglDisplay) -> bool:
    """Import a sealed memfd as if it were a dma-buf, clear it, look at the memory. Software renderers can."""
    width, height = 16, 16
    pitch = width * 4
    fd = os.memfd_create("isorend-probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        image = _import_memory(display, fd, width, height, pitch)
        if image is None:
            return False
        with _texture() as texture:
            _image_target_texture(image)
            with _framebuffer(texture):
                _clear(width, height)
                GL.glFinish()
        eglDestroyImageKHR(display.handle, image)
        with mmap.mmap(fd, mmap.PAGESIZE) as memory:
            return memory[: pitch * height] == b"\xff\x00\xff\xff" * (width * height)
    finally:
        os.close(fd)


def probe(display: EglDisplay) -> Description:
    """Draw on the display and say what is behind it. Raises EngineError if it does not draw what it was told."""
    capabilities = Capability(0)
    try:
        with _current_context(display):
            renderer = GL.glGetString(GL.GL_RENDERER) or b""
            version = GL.glGetString(GL.GL_VERSION) or b""
            if not _draws():
                raise EngineError("the driver does not draw what it was told")
            if "EGL_EXT_image_dma_buf_import" in display.extensions:
                capabilities |= Capability.DMABUF_IMPORT
                if _draws_into_memfd(display):
                    capabilities |= Capability.MEMFD_IMPORT
    except OpenGLError as error:
        raise EngineError(f"OpenGL failed: {error}") from error
    if display.is_render_node:
        capabilities |= Capability.RENDER_NODE
        if "EGL_MESA_image_dma_buf_export" in display.extensions:
            capabilities |= Capability.DMABUF_EXPORT
    return Description(renderer.decode("ascii", "replace"), version.decode("ascii", "replace"), capabilities)
