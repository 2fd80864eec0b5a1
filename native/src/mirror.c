#include "mirror.h"

static uint64_t level_bytes(const struct iso_mirror_level *level)
{
    return level->layer_stride * level->depth;
}

/* Without its offset. */
static struct iso_mirror_level measure(const struct iso_texture *texture, uint32_t level)
{
    if (texture->target == ISO_TARGET_BUFFER)
        return (struct iso_mirror_level){0, texture->width, 1, 1, texture->width, texture->width};
    const struct iso_block *block = iso_format_block(texture->format);
    uint32_t width = iso_minify(texture->width, level), height = iso_minify(texture->height, level);
    uint32_t depth = texture->target == ISO_TARGET_TEXTURE_3D ? iso_minify(texture->depth, level) : texture->array_size;
    uint64_t stride = (width + (uint64_t)block->width - 1) / block->width * block->bytes;
    uint64_t lines = (height + (uint64_t)block->height - 1) / block->height;
    return (struct iso_mirror_level){0, width, height, depth, stride, stride * lines};
}

bool iso_mirror_level(const struct iso_texture *texture, uint32_t level, struct iso_mirror_level *out)
{
    uint64_t offset = ISO_MIRROR_HEADER_BYTES;

    if (!iso_texture_valid(texture) || texture->nr_samples > 1 || level > texture->last_level)
        return false;
    for (uint32_t above = 0; above < level; above++) {
        struct iso_mirror_level large = measure(texture, above);
        offset += level_bytes(&large);
    }
    *out = measure(texture, level);
    out->offset = offset;
    return true;
}

uint64_t iso_mirror_bytes(const struct iso_texture *texture)
{
    struct iso_mirror_level last;

    return iso_mirror_level(texture, texture->last_level, &last) ? last.offset + level_bytes(&last) : 0;
}
