"""Textures in memory that others have, too: EGLImages made of a descriptor, and descriptors of textures.

Import is EGL_EXT_image_dma_buf_import, which software renderers (Mesa from 24.1 on) do with plain shared memory, too;
export is EGL_MESA_image_dma_buf_export. None of the calls needs a GL context of a certain kind to be current, and none
leaves another one current: virglrenderer, which is handed the images, relies on its own.
"""

import ctypes
import errno
import fcntl
import os
from typing import Any, Final

from OpenGL import EGL
from OpenGL.EGL.KHR.image_base import eglCreateImageKHR, eglDestroyImageKHR
from OpenGL.EGL.MESA.image_dma_buf_export import eglExportDMABUFImageMESA, eglExportDMABUFImageQueryMESA
from OpenGL.error import EGLError

from context_worker.egl import EglDisplay
from native.engines import ResourceArguments
from native.owned_fd import OwnedFd
from native.shared_formats import SHARED_FORMATS, holds, is_fourcc_of, is_image, packed_layout, with_alpha
from native.storage import MODIFIER_INVALID, MODIFIER_LINEAR, Layout, StorageKind
from native.virgl import ImportedImage

# Khronos' registry of EGL numbers: EGL_KHR_gl_texture_2D_image, EGL_EXT_image_dma_buf_import and its _modifiers.
EGL_GL_TEXTURE_2D_KHR: Final = 0x30B1
EGL_LINUX_DMA_BUF_EXT: Final = 0x3270
EGL_LINUX_DRM_FOURCC_EXT: Final = 0x3271
EGL_DMA_BUF_PLANE0_FD_EXT: Final = 0x3272
EGL_DMA_BUF_PLANE0_OFFSET_EXT: Final = 0x3273
EGL_DMA_BUF_PLANE0_PITCH_EXT: Final = 0x3274
EGL_DMA_BUF_PLANE0_MODIFIER_LO_EXT: Final = 0x3443
EGL_DMA_BUF_PLANE0_MODIFIER_HI_EXT: Final = 0x3444

_IMPORT = "EGL_EXT_image_dma_buf_import"
_MODIFIERS = "EGL_EXT_image_dma_buf_import_modifiers"
_EXPORT = "EGL_MESA_image_dma_buf_export"

_WORD = (1 << 32) - 1
_MOST_PLANES = 4


class EglImages:
    """EGLImages of one display."""

    def __init__(self, display: EglDisplay) -> None:
        self._display = display
        self._software = not display.is_render_node

    @property
    def can_import(self) -> bool:
        """Whether there is an import, of what memory ever."""
        return _IMPORT in self._display.extensions

    @property
    def can_export(self) -> bool:
        """Whether there is an export, which need not work."""
        return _EXPORT in self._display.extensions

    def import_image(self, fd: int, kind: StorageKind, layout: Layout, resource: ResourceArguments) -> ImportedImage:
        """An EGLImage of a texture that lies in `fd`, which stays the caller's; a layout without stride is made here.

        Raises OSError: ENOTSUP for a texture that cannot be imported; EINVAL if the storage does not hold it, is
        smaller than `layout` says, or could become so; EIO if the driver refuses.
        """
        if not self.can_import or not _is_image(resource):
            raise OSError(errno.ENOTSUP, "such a texture cannot be imported")
        width, height = resource.width, resource.height
        if not layout.stride:
            try:
                layout = packed_layout(resource.format, width, height, layout.nbytes)
            except ValueError as error:
                raise OSError(errno.EINVAL, str(error)) from error
        if layout.nbytes > _size(fd, kind) or not holds(
            layout, resource.format, width, height, software=self._software
        ):
            raise OSError(errno.EINVAL, f"{width} x {height} pixels are not in {layout}")
        shared = SHARED_FORMATS[resource.format]
        linear = layout.modifier in (MODIFIER_LINEAR, MODIFIER_INVALID)
        if not is_fourcc_of(resource.format, layout.fourcc) or (kind is StorageKind.MEMFD and not linear):
            # The driver would go by that, and its pixels could be larger than those whose room was looked at.
            raise OSError(errno.EINVAL, f"pixels of another format: {layout}")
        fourcc = with_alpha(layout.fourcc) or shared.fourcc
        image = self.create_image(
            fd, Layout(layout.nbytes, layout.offset, layout.stride, fourcc, layout.modifier), width, height
        )
        return ImportedImage(_address(image), layout, shared.imported_as)

    def create_image(self, fd: int, layout: Layout, width: int, height: int) -> Any:
        """PyOpenGL's EGLImage of such pixels in `fd`, whose size is not looked at. Raises OSError (EIO)."""
        attributes = {
            EGL.EGL_WIDTH: width,
            EGL.EGL_HEIGHT: height,
            EGL_LINUX_DRM_FOURCC_EXT: layout.fourcc,
            EGL_DMA_BUF_PLANE0_FD_EXT: fd,
            EGL_DMA_BUF_PLANE0_OFFSET_EXT: layout.offset,
            EGL_DMA_BUF_PLANE0_PITCH_EXT: layout.stride,
        }
        if layout.modifier != MODIFIER_INVALID and _MODIFIERS in self._display.extensions:
            attributes[EGL_DMA_BUF_PLANE0_MODIFIER_LO_EXT] = layout.modifier & _WORD
            attributes[EGL_DMA_BUF_PLANE0_MODIFIER_HI_EXT] = layout.modifier >> 32
        return self._create(EGL.EGL_NO_CONTEXT, EGL_LINUX_DMA_BUF_EXT, None, attributes)

    def _create(self, context: Any, target: int, buffer: Any, attributes: dict[Any, int]) -> Any:
        flat = [word for pair in attributes.items() for word in pair]
        words = (ctypes.c_int32 * (len(flat) + 1))(*flat, EGL.EGL_NONE)
        try:
            image = eglCreateImageKHR(self._display.handle, context, target, buffer, words)
        except EGLError as error:  # a driver that wants a real dma-buf says so by an error
            raise OSError(errno.EIO, f"eglCreateImageKHR failed: {error.err}") from error
        if not image:
            raise OSError(errno.EIO, "eglCreateImageKHR made nothing")
        return image

    def drop_image(self, address: int) -> None:
        """Destroy an EGLImage; the textures that were made of it stay."""
        self.destroy(ctypes.cast(address, EGL.EGLImageKHR))

    def destroy(self, image: Any) -> None:
        """The same of PyOpenGL's EGLImage."""
        eglDestroyImageKHR(self._display.handle, image)

    def export_texture(self, texture: int) -> tuple[OwnedFd, Layout]:
        """A dma-buf of a two-dimensional GL texture of the current context, and how it lies there. Raises OSError."""
        if not self.can_export:
            raise OSError(errno.ENOTSUP, "EGL has no export")
        context, buffer = EGL.eglGetCurrentContext(), ctypes.c_void_p(texture)
        image = self._create(context, EGL_GL_TEXTURE_2D_KHR, buffer, {})
        try:
            return self._export(image)
        except EGLError as error:
            raise OSError(errno.EIO, f"the export failed: {error.err}") from error
        finally:
            self.destroy(image)

    def _export(self, image: Any) -> tuple[OwnedFd, Layout]:
        fourcc, planes = ctypes.c_int(), ctypes.c_int()
        modifiers = (ctypes.c_uint64 * _MOST_PLANES)()
        eglExportDMABUFImageQueryMESA(
            self._display.handle, image, ctypes.byref(fourcc), ctypes.byref(planes), modifiers
        )
        if planes.value != 1:
            raise OSError(errno.ENOTSUP, f"a texture of {planes.value} planes")
        fds = (ctypes.c_int * _MOST_PLANES)(*([-1] * _MOST_PLANES))
        strides, offsets = (ctypes.c_int32 * _MOST_PLANES)(), (ctypes.c_int32 * _MOST_PLANES)()
        eglExportDMABUFImageMESA(self._display.handle, image, fds, strides, offsets)
        if fds[0] < 0:
            raise OSError(errno.EIO, "the export made no descriptor")
        fd = OwnedFd(fds[0])
        nbytes = os.lseek(fd.fd, 0, os.SEEK_END)
        return fd, Layout(nbytes, offsets[0], strides[0], fourcc.value & _WORD, modifiers[0])


def _is_image(resource: ResourceArguments) -> bool:
    return is_image(
        resource.target,
        resource.format,
        last_level=resource.last_level,
        array_size=resource.array_size,
        nr_samples=resource.nr_samples,
        flags=resource.flags,
    )


def _size(fd: int, kind: StorageKind) -> int:
    """Bytes of storage that are there for good. Raises OSError (EINVAL) if it could shrink."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        if kind is not StorageKind.DMABUF:
            raise
        return os.lseek(fd, 0, os.SEEK_END)
    if not seals & fcntl.F_SEAL_SHRINK:
        raise OSError(errno.EINVAL, "the storage could shrink")
    return os.lseek(fd, 0, os.SEEK_END)


def _address(image: Any) -> int:
    return ctypes.cast(image, ctypes.c_void_p).value or 0
