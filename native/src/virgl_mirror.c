#include "virgl_mirror.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "sealed_memory.h"
#include "virgl_api.h"
#include "virgl_usage.h"

/* virglrenderer counts the bytes of a level in 32 bits, OpenGL with a sign. */
static bool can_copy(const struct iso_texture *texture)
{
    struct iso_mirror_level level;

    for (uint32_t i = 0; i <= texture->last_level; i++)
        if (!iso_mirror_level(texture, i, &level) || level.layer_stride * level.depth > INT32_MAX)
            return false;
    return true;
}

int iso_virgl_mirror_new(uint32_t resource_id, const struct iso_texture *texture, bool written, uint64_t nbytes, int fd,
                         struct iso_virgl_mirror **out)
{
    const uint64_t needed = iso_mirror_bytes(texture);

    if (!needed || !can_copy(texture))
        return ENOTSUP;
    if (nbytes < needed)
        return EINVAL;
    struct iso_virgl_mirror *mirror = malloc(sizeof(*mirror));
    if (!mirror)
        return ENOMEM;
    *mirror = (struct iso_virgl_mirror){.resource_id = resource_id, .texture = *texture, .written = written};
    mirror->header = iso_map_sealed(fd, nbytes, false, &mirror->mapped);
    int error = mirror->header ? 0 : errno;
    if (!error && !iso_virgl_watch(resource_id, &mirror->written)) {
        munmap(mirror->header, mirror->mapped);
        error = ENOMEM;
    }
    if (error)
        free(mirror);
    else
        *out = mirror;
    return error;
}

void iso_virgl_mirror_free(struct iso_virgl_mirror *mirror)
{
    if (!mirror)
        return;
    iso_virgl_unwatch(mirror->resource_id);
    munmap(mirror->header, mirror->mapped);
    free(mirror);
}

static int transfer(const struct iso_virgl_mirror *mirror, const struct iso_mirror_level *at, uint32_t level,
                    struct virgl_box box, uint64_t offset, bool out)
{
    struct iovec iov = {(uint8_t *)mirror->header + at->offset, at->layer_stride * at->depth};
    const uint32_t stride = mirror->texture.target == ISO_TARGET_BUFFER ? 0 : (uint32_t)at->stride;

    if (out)
        return abs(virgl_renderer_transfer_read_iov(mirror->resource_id, 0, level, stride, 0, &box, offset, &iov, 1));
    return abs(virgl_renderer_transfer_write_iov(mirror->resource_id, 0, (int)level, stride, 0, &box, offset, &iov, 1));
}

/*
 * OpenGL, as virglrenderer sets it up, pads each row to a multiple of four bytes where a pixel has three or six. A row alone
 * has nothing behind it.
 */
static bool goes_by_rows(const struct iso_texture *texture)
{
    const uint8_t bytes = iso_format_block(texture->format)->bytes;

    return texture->target != ISO_TARGET_BUFFER && (bytes == 3 || bytes == 6);
}

static int copy_level(const struct iso_virgl_mirror *mirror, uint32_t level, bool out)
{
    struct iso_mirror_level at;
    const bool by_rows = goes_by_rows(&mirror->texture);
    int error = iso_mirror_level(&mirror->texture, level, &at) ? 0 : EINVAL;
    const uint32_t rows = by_rows ? 1 : at.height;

    for (uint32_t z = 0; !error && z < at.depth; z++)
        for (uint32_t y = 0; !error && y < at.height; y += rows)
            error = transfer(mirror, &at, level, (struct virgl_box){0, y, z, at.width, rows, 1},
                             z * at.layer_stride + (by_rows ? y * at.stride : 0), out);
    return error;
}

static int copy(const struct iso_virgl_mirror *mirror, bool out)
{
    int error = 0;

    for (uint32_t level = 0; !error && level <= mirror->texture.last_level; level++)
        error = copy_level(mirror, level, out);
    if (!error)
        atomic_fetch_add(&mirror->header->copied, iso_mirror_bytes(&mirror->texture) - ISO_MIRROR_HEADER_BYTES);
    return error;
}

int iso_virgl_mirror_copy_out(struct iso_virgl_mirror *mirror)
{
    if (!mirror->written)
        return 0;
    int error = copy(mirror, true);
    if (error)
        return error;
    mirror->seen = atomic_fetch_add(&mirror->header->version, 1) + 1;
    mirror->written = false;
    return 0;
}

int iso_virgl_mirror_copy_in(struct iso_virgl_mirror *mirror)
{
    const uint64_t version = atomic_load(&mirror->header->version);

    if (!version || version == mirror->seen)
        return 0;
    int error = copy(mirror, false);
    if (error)
        return error;
    mirror->seen = version;
    mirror->written = false;
    return 0;
}
