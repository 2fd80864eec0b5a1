"""Typed face of the virgl engine: virglrenderer, its contexts and their objects (native/src/virgl_engine.h,
native/src/virgl_objects.h).

What returns a number returns 0 or a positive errno. Importing this module loads libvirglrenderer and libEGL (without
touching a driver), as native.engines does.
"""

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from native._engines import ffi, lib
from native.engines import MAX_SHADER_BYTES, V1_FIELDS, NativeEngine, ResourceArguments, Status, text_of, v1_of
from native.storage import Layout, StorageKind

log = logging.getLogger(__name__)

_IMPORTED = {StorageKind.DMABUF: lib.ISO_VIRGL_DMABUF, StorageKind.MEMFD: lib.ISO_VIRGL_MEMFD}


@dataclass(frozen=True)
class ImportedImage:
    """An EGLImage (its address), how it lies in its storage, and the virgl format that virglrenderer is to take it
    for."""

    address: int
    layout: Layout
    format: int


class Images(Protocol):
    """Who makes EGLImages for a VirglEngine."""

    def import_image(self, fd: int, kind: StorageKind, layout: Layout, resource: ResourceArguments) -> ImportedImage:
        """An EGLImage of a texture that lies in `fd`, which stays the caller's. A layout without stride is to be made
        here. Raises OSError."""
        ...

    def drop_image(self, address: int) -> None:
        """Destroy it; the texture that was made of it stays."""
        ...


class VirglEngine(NativeEngine):
    """libvirglrenderer and its guest contexts. There can be one of these in the life of a process."""

    def __init__(
        self,
        egl_display: int,
        egl_config: int,
        *,
        gles: bool,
        images: Images | None = None,
        for_vtest: bool = False,
        max_shader_bytes: int = MAX_SHADER_BYTES,
    ) -> None:
        """Initialise virglrenderer on an EGLDisplay and EGLConfig (addresses). Raises OSError when it refuses.

        `images`: without, no texture can be imported. `for_vtest`: a VtestSession will drive it, not a Consumer.
        `max_shader_bytes`: see check_stream().
        """
        text = ffi.new("char[256]")
        use = lib.ISO_VIRGL_FOR_VTEST if for_vtest else lib.ISO_VIRGL_FOR_RING
        pointer = lib.iso_virgl_engine_init(
            *(ffi.cast("void *", egl_display), ffi.cast("void *", egl_config), gles, use),
            *(max_shader_bytes, text, ffi.sizeof(text)),
        )
        if pointer == ffi.NULL:
            raise OSError(ffi.errno, text_of(text))
        if images is not None:
            _ImageCalls.use(images)
        super().__init__(pointer)

    def started(self) -> None:
        """End of the start: from now on virglrenderer's messages are logged."""
        lib.iso_virgl_started()

    def capset(self, capset_id: int) -> tuple[int, bytes] | None:
        """Newest version and bytes of a capability set, None if virglrenderer has no such set."""
        version, size = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        data = lib.iso_virgl_capset(capset_id, version, size)
        return None if data == ffi.NULL else (version[0], bytes(ffi.buffer(data, size[0])))

    def context_create(self, ctx_id: int, capset_id: int, name: str) -> int:
        """Create a guest context. `name` is shown in virglrenderer's messages."""
        return int(lib.iso_virgl_context_create(ctx_id, capset_id, name.encode("ascii", "replace")))

    def context_destroy(self, ctx_id: int) -> int:
        """Destroy a guest context and its attachments."""
        return int(lib.iso_virgl_context_destroy(ctx_id))

    def resource_attach(self, ctx_id: int, arguments: ResourceArguments) -> int:
        """Attach a resource to a context, and make it if no context has it."""
        return int(lib.iso_virgl_resource_attach(ctx_id, _resource(arguments)))

    def resource_import(
        self, ctx_id: int, arguments: ResourceArguments, kind: StorageKind, layout: Layout, fd: int
    ) -> int:
        """Attach a resource that lies in `fd` (lent; not a MIRROR). Width 0: its type will come in a stream."""
        storage = _storage(kind, layout)
        return int(lib.iso_virgl_resource_import(ctx_id, _resource(arguments), storage, fd))

    def resource_mirror(self, ctx_id: int, arguments: ResourceArguments, nbytes: int, fd: int) -> int:
        """Give the context's object a mirror of nbytes in `fd` (lent); it gets an object if it has none."""
        return int(lib.iso_virgl_resource_mirror(ctx_id, _resource(arguments), nbytes, fd))

    def resource_from_blob(
        self, ctx_id: int, resource_id: int, blob_id: int, nbytes: int, fd: int | None
    ) -> tuple[int, ResourceArguments, Layout]:
        """Make a blob of the context's a resource, in `fd` (a lent MEMFD) or where the driver likes, and attach it.
        What it is, and how it lies in `fd`, is told with 0 alone."""
        resource = ffi.new("struct iso_virgl_resource *", {"resource_id": resource_id})
        storage = _storage(StorageKind.MEMFD, Layout(nbytes))
        error = lib.iso_virgl_resource_from_blob(ctx_id, resource, blob_id, storage, -1 if fd is None else fd)
        return int(error), _arguments(resource), _layout(storage)

    def resource_detach(self, ctx_id: int, resource_id: int) -> int:
        """Detach a resource, and drop it if no other context has it."""
        return int(lib.iso_virgl_resource_detach(ctx_id, resource_id))

    def resource_texture(self, ctx_id: int, resource_id: int) -> tuple[int, int, ResourceArguments]:
        """An error number, the GL texture that the context's object is, and its arguments."""
        texture, resource = ffi.new("uint32_t *"), ffi.new("struct iso_virgl_resource *")
        error = lib.iso_virgl_resource_texture(ctx_id, resource_id, texture, resource)
        return int(error), int(texture[0]), _arguments(resource)


class _ImageCalls:
    """Who answers virgl_objects.c, on the consumer's thread."""

    images: Images

    @classmethod
    def use(cls, images: Images) -> None:
        cls.images = images
        lib.iso_virgl_set_images(lib.iso_python_import_image, lib.iso_python_drop_image)


@ffi.def_extern(error=errno.EIO)  # type: ignore[untyped-decorator]  # EIO also if it raises what it should not
def iso_python_import_image(fd: int, storage: Any, resource: Any, image: Any, format: Any) -> int:
    """An iso_virgl_image_import."""
    kind = StorageKind.DMABUF if storage.kind == lib.ISO_VIRGL_DMABUF else StorageKind.MEMFD
    try:
        made = _ImageCalls.images.import_image(fd, kind, _layout(storage), _arguments(resource))
    except OSError as error:
        log.debug("resource %d is not imported: %s", resource.resource_id, error)
        return error.errno or errno.EIO
    storage.stride, storage.fourcc = made.layout.stride, made.layout.fourcc
    storage.offset, storage.modifier = made.layout.offset, made.layout.modifier
    image[0] = ffi.cast("void *", made.address)
    format[0] = made.format
    return 0


@ffi.def_extern()  # type: ignore[untyped-decorator]
def iso_python_drop_image(image: Any) -> None:
    """An iso_virgl_image_drop."""
    _ImageCalls.images.drop_image(int(ffi.cast("uintptr_t", image)))


def _resource(arguments: ResourceArguments) -> Any:
    return ffi.new("struct iso_virgl_resource *", {"resource_id": arguments.resource_id, "v1": v1_of(arguments)})


def _arguments(resource: Any) -> ResourceArguments:
    return ResourceArguments(resource.resource_id, *(getattr(resource.v1, name) for name in V1_FIELDS))


def _storage(kind: StorageKind, layout: Layout) -> Any:
    values = (_IMPORTED[kind], layout.stride, layout.fourcc, layout.nbytes, layout.offset, layout.modifier)
    return ffi.new("struct iso_virgl_storage *", values)


def _layout(storage: Any) -> Layout:
    return Layout(storage.nbytes, storage.offset, storage.stride, storage.fourcc, storage.modifier)


# ---- streams


class StreamUsage:
    """What the streams of one context write to (native/src/virgl_usage.h), without a context. close() frees it."""

    def __init__(self) -> None:
        self.pointer = lib.iso_virgl_usage_new()
        if self.pointer == ffi.NULL:
            raise MemoryError
        self._watched: dict[int, Any] = {}

    def watch(self, resource_id: int) -> Callable[[], bool]:
        """Watch a resource, of which no other context has a mirror. The function says if it was written since the
        last call."""
        written = ffi.new("bool *")
        if not lib.iso_virgl_watch(resource_id, written):
            raise MemoryError
        self._watched[resource_id] = written

        def was_written() -> bool:
            found, written[0] = bool(written[0]), False
            return found

        return was_written

    def close(self) -> None:
        """Free it, and watch nothing any more."""
        for resource_id in self._watched:
            lib.iso_virgl_unwatch(resource_id)
        self._watched.clear()
        lib.iso_virgl_usage_free(self.pointer)
        self.pointer = ffi.NULL


@dataclass(frozen=True)
class Finding:
    """What is found out about a stream before virglrenderer gets it: how a SUBMIT of it would be answered, why, whether
    it asks for the result of a query, and whether it has commands that virglrenderer does not get."""

    status: Status
    text: str
    asks_for_query: bool
    has_blobs: bool


def check_stream(stream: bytes, max_shader_bytes: int = MAX_SHADER_BYTES, usage: StreamUsage | None = None) -> Finding:
    """The look at a stream (native/src/virgl_limits.h), which `usage` follows."""
    finding: Any = ffi.new("struct iso_virgl_finding *")
    words = ffi.new("uint32_t[]", len(stream) // 4 or 1)
    ffi.memmove(words, stream, len(stream) // 4 * 4)
    follows = usage.pointer if usage else ffi.NULL
    status = Status(lib.iso_virgl_check(words, len(stream) // 4, max_shader_bytes, follows, finding))
    text = text_of(finding.text) if status is not Status.OK else ""
    return Finding(status, text, bool(finding.asks_for_query), bool(finding.has_blobs))
