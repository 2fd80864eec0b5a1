#include "texture.h"

#include <stddef.h>

static const struct iso_block blocks[] = {
#include "format_table.inc"
};

enum { MAX_SIZE = 16384, MAX_DEPTH = 2048, MAX_SAMPLES = 32, MAX_LEVEL = 14 };

const struct iso_block *iso_format_block(uint32_t format)
{
    size_t low = 0, high = sizeof(blocks) / sizeof(blocks[0]);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (format > blocks[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    bool found = low < sizeof(blocks) / sizeof(blocks[0]) && format >= blocks[low].first;
    return found ? &blocks[low] : NULL;
}

bool iso_texture_valid(const struct iso_texture *texture)
{
    if (texture->target > ISO_TARGET_MAX || !texture->width || !texture->height || !texture->depth || !texture->array_size)
        return false;
    if (!iso_format_block(texture->format))
        return false;
    if (texture->target == ISO_TARGET_BUFFER)
        return texture->height == 1 && texture->depth == 1 && texture->array_size == 1 && !texture->last_level;
    return texture->width <= MAX_SIZE && texture->height <= MAX_SIZE && texture->depth <= MAX_DEPTH &&
           texture->array_size <= MAX_DEPTH && texture->last_level <= MAX_LEVEL && texture->nr_samples <= MAX_SAMPLES &&
           (texture->target == ISO_TARGET_TEXTURE_3D || texture->depth == 1);
}

uint64_t iso_texture_bytes(const struct iso_texture *texture)
{
    if (!iso_texture_valid(texture))
        return 0;
    if (texture->target == ISO_TARGET_BUFFER)
        return texture->width;
    const struct iso_block *block = iso_format_block(texture->format);
    uint64_t bytes = 0;
    for (uint32_t level = 0; level <= texture->last_level; level++) {
        uint64_t columns = (iso_minify(texture->width, level) + block->width - 1u) / block->width;
        uint64_t lines = (iso_minify(texture->height, level) + block->height - 1u) / block->height;
        bytes += columns * lines * iso_minify(texture->depth, level); /* 2^14 * 2^14 * 2^11 at most */
    }
    /* 2^40 blocks, 2^11 layers, 2^5 samples, 2^5 bytes: 2^61 */
    return bytes * texture->array_size * (texture->nr_samples ? texture->nr_samples : 1) * block->bytes;
}

static bool inside(uint32_t at, uint32_t len, uint32_t size)
{
    return len && at <= size && len <= size - at;
}

bool iso_texture_rows(const struct iso_texture *texture, const struct iso_box *box, uint32_t level, uint32_t stride,
                      uint32_t layer_stride, uint64_t offset, struct iso_rows *rows)
{
    static const struct iso_block bytes = {.width = 1, .height = 1, .bytes = 1};
    bool buffer = texture->target == ISO_TARGET_BUFFER;
    const struct iso_block *block = buffer ? &bytes : iso_format_block(texture->format);
    if (!block || level > texture->last_level)
        return false;
    uint32_t width = iso_minify(texture->width, level), height = iso_minify(texture->height, level);
    uint32_t layers = texture->target == ISO_TARGET_TEXTURE_3D ? iso_minify(texture->depth, level) : texture->array_size;
    if (!inside(box->x, box->w, width) || !inside(box->y, box->h, height) || !inside(box->z, box->d, layers))
        return false;
    /* All sizes are bounded by 2^32 here, so 64-bit products cannot wrap. */
    uint64_t row_bytes = (box->w + (uint64_t)block->width - 1) / block->width * block->bytes;
    uint64_t line_count = (box->h + (uint64_t)block->height - 1) / block->height;
    uint64_t level_stride = (width + (uint64_t)block->width - 1) / block->width * block->bytes;
    uint64_t level_lines = (height + (uint64_t)block->height - 1) / block->height;
    if (row_bytes > UINT32_MAX || (stride && box->h > 1 && stride < row_bytes))
        return false;
    rows->offset = offset;
    rows->stride = stride ? stride : level_stride;
    if (layer_stride && box->d > 1 && layer_stride < rows->stride * (line_count - 1) + row_bytes)
        return false;
    rows->layer_stride = layer_stride ? layer_stride : rows->stride * level_lines;
    rows->row_bytes = (uint32_t)row_bytes;
    rows->rows = (uint32_t)line_count;
    rows->layers = box->d;
    return true;
}
