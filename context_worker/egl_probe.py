"""What a GL driver can do: a first drawing to prove that it draws, and what it can share, each shown by doing it once.

All that is called here was called once when a worker's system call filter is put up: what a library loads or opens for
the first time it does now.
"""

import ctypes
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from OpenGL import EGL, GL
from OpenGL.error import Error as OpenGLError
from OpenGL.raw.GL.VERSION.GL_1_5 import glBufferData, glBufferSubData, glGetBufferSubData

from context_worker.egl import EglDisplay
from context_worker.egl_images import EglImages
from context_worker.engine import Description, EngineError
from ipc.messages import Capability
from native.shared_formats import linear_layout

# Khronos' registry of GL numbers, GL_AMD_pinned_memory.
GL_EXTERNAL_VIRTUAL_MEMORY_BUFFER_AMD = 0x9160

_SIDE = 16
_B8G8R8A8 = 1
_CLEARED = b"\xff\x00\xff\xff"  # the same in either order


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


def _memfd(size: int) -> int:
    fd = os.memfd_create("isorend-probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


def _draws_into_memfd(images: EglImages) -> bool:
    """Import a sealed memfd as if it were a dma-buf, clear it, look at the memory. Software renderers can."""
    layout = linear_layout(_B8G8R8A8, _SIDE, _SIDE)
    fd = _memfd(layout.nbytes)
    try:
        image = images.create_image(fd, layout, _SIDE, _SIDE)
        with _texture() as texture:
            _image_target_texture(image)
            with _framebuffer(texture):
                _clear(_SIDE, _SIDE)
                GL.glFinish()
        images.destroy(image)
        with mmap.mmap(fd, layout.nbytes) as memory:
            return memory[: layout.stride * _SIDE] == _CLEARED * (layout.stride // 4 * _SIDE)
    except OSError:
        return False
    finally:
        os.close(fd)


@contextmanager
def _buffer() -> Iterator[int]:
    buffer = ctypes.c_uint32()
    GL.glGenBuffers(1, ctypes.byref(buffer))
    try:
        yield buffer.value
    finally:
        GL.glDeleteBuffers(1, ctypes.byref(buffer))


def _pins_buffers(extensions: frozenset[str]) -> bool:
    """Have a buffer lie in memory of ours, look whether it holds what is there, and whether that changes with it."""
    if "GL_AMD_pinned_memory" not in extensions:
        return False
    before, after = b"\x5a" * mmap.PAGESIZE, b"\xa5" * 64
    found = ctypes.create_string_buffer(mmap.PAGESIZE)
    with mmap.mmap(-1, mmap.PAGESIZE) as memory, _buffer() as buffer:
        memory[:] = before
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        target = GL_EXTERNAL_VIRTUAL_MEMORY_BUFFER_AMD
        try:
            GL.glBindBuffer(target, buffer)
            glBufferData(target, mmap.PAGESIZE, ctypes.c_void_p(address), GL.GL_DYNAMIC_COPY)
            GL.glBindBuffer(target, 0)
            GL.glBindBuffer(GL.GL_ARRAY_BUFFER, buffer)
            glGetBufferSubData(GL.GL_ARRAY_BUFFER, 0, mmap.PAGESIZE, found)
            glBufferSubData(GL.GL_ARRAY_BUFFER, 0, len(after), after)
            GL.glFinish()
            return found.raw == before and memory[:] == after + before[len(after) :]
        except OpenGLError:
            return False


def _exports(images: EglImages) -> bool:
    """Ask for the descriptor of a texture, and make an image of it as another worker would: some can do half of it."""
    if not images.can_export or not images.can_import:
        return False
    with _texture() as texture:
        GL.glTexImage2D(GL.GL_TEXTURE_2D, 0, GL.GL_RGBA8, _SIDE, _SIDE, 0, GL.GL_RGBA, GL.GL_UNSIGNED_BYTE, None)
        try:
            fd, layout = images.export_texture(texture)
            with fd:
                images.destroy(images.create_image(fd.fd, layout, _SIDE, _SIDE))
        except OSError:
            return False
        return layout.nbytes >= layout.offset + layout.stride * (_SIDE - 1) and layout.stride > 0


def _gl_extensions() -> frozenset[str]:
    count = ctypes.c_int32()
    GL.glGetIntegerv(GL.GL_NUM_EXTENSIONS, ctypes.byref(count))
    return frozenset(
        (GL.glGetStringi(GL.GL_EXTENSIONS, i) or b"").decode("ascii", "replace") for i in range(count.value)
    )


def _sharing(display: EglDisplay) -> Capability:
    images = EglImages(display)
    found = Capability(0)
    if images.can_import:
        found |= Capability.DMABUF_IMPORT
        if _draws_into_memfd(images):
            found |= Capability.MEMFD_IMPORT
    if _pins_buffers(_gl_extensions()):
        found |= Capability.PINNED_BUFFERS
    if _exports(images):
        found |= Capability.DMABUF_EXPORT | Capability.OBJECT_EXPORT
    return found


def probe(display: EglDisplay) -> Description:
    """Draw on the display and say what is behind it. Raises EngineError if it does not draw what it was told."""
    try:
        with _current_context(display):
            renderer = GL.glGetString(GL.GL_RENDERER) or b""
            version = GL.glGetString(GL.GL_VERSION) or b""
            if not _draws():
                raise EngineError("the driver does not draw what it was told")
            capabilities = _sharing(display)
    except OpenGLError as error:
        raise EngineError(f"OpenGL failed: {error}") from error
    if display.is_render_node:
        capabilities |= Capability.RENDER_NODE
    return Description(renderer.decode("ascii", "replace"), version.decode("ascii", "replace"), capabilities)
