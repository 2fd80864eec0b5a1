/*
 * What a transfer between a 3D resource and guest memory touches: formats, mip levels, boxes, strides.
 * The rules are those of virglrenderer's transfer checks, so that what passes here passes there.
 */
#ifndef ISOREND_TEXTURE_H
#define ISOREND_TEXTURE_H

#include "backing.h"

/* struct virtio_gpu_resource_create_3d without its header and id: the v1 arguments. Targets are gallium's pipe targets. */
struct iso_texture {
    uint32_t target, format, bind, width, height, depth, array_size, last_level, nr_samples, flags;
};

struct iso_box {
    uint32_t x, y, z, w, h, d;
};

enum { ISO_TARGET_BUFFER = 0, ISO_TARGET_TEXTURE_3D = 3, ISO_TARGET_MAX = 8 };

struct iso_block {
    uint16_t first, last; /* format numbers that share this block size */
    uint8_t width, height, bytes;
};

/* NULL for a format that has no single block size or that nobody knows. */
const struct iso_block *iso_format_block(uint32_t format);
/* A size of level 0 in the given level; for what levels make smaller: not the number of layers. */
static inline uint32_t iso_minify(uint32_t size, uint32_t level)
{
    uint32_t small = size >> level;
    return small ? small : 1;
}
/* Whether the v1 arguments describe something that could exist: known target and format, sizes that agree with them. */
bool iso_texture_valid(const struct iso_texture *texture);
/*
 * Bytes of all levels, layers and samples of a valid texture, without what a driver adds; 0 if it is not valid. It cannot
 * overflow: sizes of valid textures are bounded.
 */
uint64_t iso_texture_bytes(const struct iso_texture *texture);
/*
 * Fills `rows` with where the box lies in guest memory. stride and layer_stride 0 mean those of the whole level. False if
 * the box is empty or not inside the level, or the strides are too small.
 */
bool iso_texture_rows(const struct iso_texture *texture, const struct iso_box *box, uint32_t level, uint32_t stride,
                      uint32_t layer_stride, uint64_t offset, struct iso_rows *rows);

#endif
