"""The storage of a resource: a descriptor, and how the contents lie behind it."""

import errno
import mmap
import select
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from native.linux import DMA_BUF_SYNC_END, DMA_BUF_SYNC_READ, DMA_BUF_SYNC_START, PAGE_BYTES, dma_buf_ioctl_sync
from native.owned_fd import OwnedFd
from native.storage import Layout, StorageKind


@dataclass(eq=False, slots=True)
class Storage:
    """A descriptor and what it is. Whoever has the Storage owns the descriptor.

    It is sealed memory or a dma-buf, of which no part can go away while somebody looks at it.

    map_info: VIRTIO_GPU_MAP_CACHE_*, how a guest may map it; 0: not at all.
    """

    fd: OwnedFd
    kind: StorageKind
    layout: Layout
    map_info: int = 0

    @contextmanager
    def bytes_at(self, offset: int, nbytes: int) -> Iterator[memoryview]:
        """A part of it, to be read within the context.

        Raises OSError: what mmap(2) says, EBUSY if a driver is still drawing there; ValueError for what is not there.
        """
        first = offset // PAGE_BYTES * PAGE_BYTES
        with mmap.mmap(self.fd.fd, offset + nbytes - first, mmap.MAP_SHARED, mmap.PROT_READ, offset=first) as memory:
            if self.kind is StorageKind.DMABUF:
                self._begin_looking()
            try:
                with memoryview(memory) as whole, whole[offset - first :] as part:
                    yield part
            finally:
                if self.kind is StorageKind.DMABUF:
                    dma_buf_ioctl_sync(self.fd.fd, DMA_BUF_SYNC_READ | DMA_BUF_SYNC_END)

    def _begin_looking(self) -> None:
        """The kernel would wait here for whoever draws, so it has to be nobody."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if not poll.poll(0):
            raise OSError(errno.EBUSY, "a driver draws there")
        dma_buf_ioctl_sync(self.fd.fd, DMA_BUF_SYNC_READ | DMA_BUF_SYNC_START)

    def close(self) -> None:
        """Gives the descriptor back."""
        self.fd.close()
