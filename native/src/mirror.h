/*
 * A mirror: shared memory that holds the contents of a resource of which several contexts have objects of their own.
 *
 * Theory of operation
 *
 * Where no driver can share a resource's memory, its contents are copied at the points where the order of contexts asks for
 * it (plane.h): the context that may have drawn last copies out (ISO_RECORD_COPY_OUT), the next one to use it copies in
 * (ISO_RECORD_COPY_IN). Both are cheap when there is nothing to do. A worker knows what its stream wrote, so it copies out
 * only that; and a mirror has a version, raised by each who copied out, so it copies in only what it has not seen.
 *
 * The memory is one sealed memfd: a page with the header, then all levels one behind the other, each with its layers, their
 * rows packed. Every context that has the resource can write all of it, as it can write the resource; what it says here
 * can spoil contents and nothing else.
 */
#ifndef ISOREND_MIRROR_H
#define ISOREND_MIRROR_H

#include "texture.h"

#include <stdatomic.h>

#define ISO_MIRROR_HEADER_BYTES 4096u

struct iso_mirror_header {
    _Atomic uint64_t version; /* 0: nothing was copied yet */
    _Atomic uint64_t copied;  /* bytes, out and in, as workers say; nobody relies on it, benchmarks read it */
};

struct iso_mirror_level {
    uint64_t offset; /* bytes, of its first row, from the start of the memory */
    uint32_t width, height, depth; /* pixels, and layers or slices; a buffer is one row of bytes */
    uint64_t stride, layer_stride; /* bytes */
};

/* Bytes of the whole memory; 0 for a texture that cannot be copied: invalid, of several samples, or without a block size. */
uint64_t iso_mirror_bytes(const struct iso_texture *texture);
/* Where a level lies. False if there is no such level, or no mirror. */
bool iso_mirror_level(const struct iso_texture *texture, uint32_t level, struct iso_mirror_level *out);

#endif
