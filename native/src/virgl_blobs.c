#include "virgl_blobs.h"

#include <errno.h>
#include <stdlib.h>

#include "virgl_stream.h"

/* virtio's blob ids have 64 bits, those in streams 32: virglrenderer looks at no more. */
static uint32_t short_id(uint64_t blob_id)
{
    return (uint32_t)blob_id;
}

int iso_virgl_blobs_announce(struct iso_virgl_blobs *blobs, const uint32_t *command)
{
    if (iso_virgl_length(command[0]) != ISO_VIRGL_RESOURCE_CREATE_WORDS)
        return EINVAL;
    const uint32_t id = command[11];
    const struct iso_texture texture = {
        .target = command[1],
        .format = command[2],
        .bind = command[3],
        .width = command[4],
        .height = command[5],
        .depth = command[6],
        .array_size = command[7],
        .last_level = command[8],
        .nr_samples = command[9],
        .flags = command[10],
    };

    if (!id || iso_idmap_get(&blobs->map, id) || !iso_texture_valid(&texture))
        return EINVAL;
    if (blobs->map.used >= ISO_VIRGL_MAX_BLOBS)
        return ENOSPC;
    struct iso_texture *kept = malloc(sizeof(*kept));
    if (!kept)
        return ENOMEM;
    *kept = texture;
    if (iso_idmap_put(&blobs->map, id, kept))
        return 0;
    free(kept);
    return ENOMEM;
}

const struct iso_texture *iso_virgl_blobs_find(const struct iso_virgl_blobs *blobs, uint64_t blob_id)
{
    return iso_idmap_get(&blobs->map, short_id(blob_id));
}

void iso_virgl_blobs_forget(struct iso_virgl_blobs *blobs, uint64_t blob_id)
{
    free(iso_idmap_remove(&blobs->map, short_id(blob_id)));
}

void iso_virgl_blobs_release(struct iso_virgl_blobs *blobs)
{
    for (uint32_t i = 0; i < blobs->map.capacity; i++)
        if (blobs->map.slots[i].id)
            free(blobs->map.slots[i].value);
    iso_idmap_release(&blobs->map);
}
