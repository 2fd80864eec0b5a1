/*
 * The 2D commands that a guest without 3D sends all day: TRANSFER_TO_HOST_2D, RESOURCE_FLUSH and, of SET_SCANOUT, the page
 * flip: another picture in the place of one of the same size (virtio 1.3, 5.7.6.8).
 *
 * Only what is short and in order is done here. A command with anything wrong in it goes to Python, which knows what to
 * answer; so does a large transfer, which Python copies without the plane's lock, and a flush whose pixels have to be read
 * back from a worker at just this place in the order. Damage gathers in the scanout until Python takes it, so a guest that
 * flushes faster than the display looks costs one rectangle; of flips it is told the last.
 */
#include "plane_state.h"

enum { SHORT_TRANSFER = 256 << 10 /* bytes; some 20 us under the lock */, PIXEL_BYTES = 4 };

struct cmd_flush {
    struct iso_ctrl_hdr hdr;
    struct iso_rect rect;
    uint32_t resource_id, padding;
};

struct cmd_set_scanout {
    struct iso_ctrl_hdr hdr;
    struct iso_rect rect;
    uint32_t scanout_id, resource_id;
};

struct cmd_transfer_2d {
    struct iso_ctrl_hdr hdr;
    struct iso_rect rect;
    uint64_t offset;
    uint32_t resource_id, padding;
};

_Static_assert(sizeof(struct cmd_flush) == 48, "struct virtio_gpu_resource_flush");
_Static_assert(sizeof(struct cmd_set_scanout) == 48, "struct virtio_gpu_set_scanout");
_Static_assert(sizeof(struct cmd_transfer_2d) == 56, "struct virtio_gpu_transfer_to_host_2d");

static bool is_within(const struct iso_rect *rect, const struct iso_resource *resource)
{
    return rect->width && rect->height && rect->width <= resource->width && rect->height <= resource->height &&
           rect->x <= resource->width - rect->width && rect->y <= resource->height - rect->height;
}

static void answer_ok(struct iso_plane *plane, struct iso_request *request)
{
    iso_request_answer(plane, request, ISO_RESP_OK_NODATA, NULL, 0);
}

bool iso_picture_transfer(struct iso_plane *plane, struct iso_request *request)
{
    struct cmd_transfer_2d cmd;
    if (!iso_chain_read(plane->mem, &request->chain, 0, &cmd, sizeof(cmd)))
        return false;
    struct iso_resource *resource = iso_idmap_get(&plane->resources, cmd.resource_id);
    if (!resource || !resource->pixels || !resource->backing || !is_within(&cmd.rect, resource))
        return false;
    if ((uint64_t)cmd.rect.width * cmd.rect.height * PIXEL_BYTES > SHORT_TRANSFER)
        return false;
    if (resource->mirrored && iso_resource_is_in_use(resource))
        return false;
    const uint64_t stride = (uint64_t)resource->width * PIXEL_BYTES;
    const struct iso_rows rows = {
        .offset = cmd.offset, .stride = stride, .row_bytes = cmd.rect.width * PIXEL_BYTES, .rows = cmd.rect.height, .layers = 1};
    uint8_t *to = resource->pixels + cmd.rect.y * stride + (uint64_t)cmd.rect.x * PIXEL_BYTES;
    if (!iso_backing_read_rows(plane->mem, resource->backing, &rows, to, stride, 0))
        return false;
    if (resource->mirrored)
        iso_resource_written(resource);
    answer_ok(plane, request);
    return true;
}

/* What both have in common; width 0: nothing. Right and bottom edges of both fit 32 bits. */
static struct iso_rect common(const struct iso_rect *a, const struct iso_rect *b)
{
    uint32_t x = a->x > b->x ? a->x : b->x, y = a->y > b->y ? a->y : b->y;
    uint32_t right_a = a->x + a->width, right_b = b->x + b->width;
    uint32_t bottom_a = a->y + a->height, bottom_b = b->y + b->height;
    uint32_t right = right_a < right_b ? right_a : right_b, bottom = bottom_a < bottom_b ? bottom_a : bottom_b;
    if (right <= x || bottom <= y)
        return (struct iso_rect){0};
    return (struct iso_rect){x, y, right - x, bottom - y};
}

/* The smallest rectangle around both; `a` may be empty. */
static struct iso_rect join(const struct iso_rect *a, const struct iso_rect *b)
{
    if (!a->width)
        return *b;
    uint32_t x = a->x < b->x ? a->x : b->x, y = a->y < b->y ? a->y : b->y;
    uint32_t right_a = a->x + a->width, right_b = b->x + b->width;
    uint32_t bottom_a = a->y + a->height, bottom_b = b->y + b->height;
    return (struct iso_rect){x, y, (right_a > right_b ? right_a : right_b) - x, (bottom_a > bottom_b ? bottom_a : bottom_b) - y};
}

static bool is_shown(const struct iso_plane *plane, uint32_t resource_id)
{
    for (uint32_t i = 0; i < ISO_MAX_SCANOUTS; i++)
        if (plane->scanouts[i].resource_id == resource_id)
            return true;
    return false;
}

static void damage(struct iso_plane *plane, struct iso_scanout *scanout, const struct iso_rect *flushed)
{
    struct iso_rect visible = common(&scanout->part, flushed);
    if (!visible.width)
        return;
    visible.x -= scanout->part.x;
    visible.y -= scanout->part.y;
    scanout->damage = join(&scanout->damage, &visible);
    iso_plane_tell_python(plane);
}

bool iso_picture_flush(struct iso_plane *plane, struct iso_request *request)
{
    struct cmd_flush cmd;
    if (!iso_chain_read(plane->mem, &request->chain, 0, &cmd, sizeof(cmd)))
        return false;
    struct iso_resource *resource = iso_idmap_get(&plane->resources, cmd.resource_id);
    if (!resource || !is_within(&cmd.rect, resource) || (!resource->pixels && is_shown(plane, resource->id)))
        return false;
    for (uint32_t i = 0; i < ISO_MAX_SCANOUTS; i++)
        if (plane->scanouts[i].resource_id == resource->id)
            damage(plane, &plane->scanouts[i], &cmd.rect);
    answer_ok(plane, request);
    return true;
}

bool iso_picture_flip(struct iso_plane *plane, struct iso_request *request)
{
    struct cmd_set_scanout cmd;
    if (!iso_chain_read(plane->mem, &request->chain, 0, &cmd, sizeof(cmd)) || cmd.scanout_id >= ISO_MAX_SCANOUTS)
        return false;
    struct iso_scanout *scanout = &plane->scanouts[cmd.scanout_id];
    const struct iso_resource *resource = iso_idmap_get(&plane->resources, cmd.resource_id);
    if (!scanout->resource_id || !resource || !resource->pixels || !is_within(&cmd.rect, resource))
        return false;
    if (cmd.rect.width != scanout->part.width || cmd.rect.height != scanout->part.height)
        return false;
    scanout->resource_id = resource->id;
    scanout->part = cmd.rect;
    if (!scanout->flipped)
        iso_plane_post(plane, (struct iso_event){.kind = ISO_EVENT_FLIPPED, .scanout = cmd.scanout_id});
    scanout->flipped = true;
    answer_ok(plane, request);
    return true;
}

/* ---- called from Python ---- */

void iso_plane_scanout_show(struct iso_plane *plane, uint32_t scanout, uint32_t resource_id, const struct iso_rect *part)
{
    pthread_mutex_lock(&plane->lock);
    if (scanout < ISO_MAX_SCANOUTS) {
        plane->scanouts[scanout].resource_id = resource_id;
        plane->scanouts[scanout].part = *part;
        if (!resource_id)
            plane->scanouts[scanout].damage = (struct iso_rect){0};
    }
    pthread_mutex_unlock(&plane->lock);
}

bool iso_plane_scanout_damage(struct iso_plane *plane, uint32_t scanout, struct iso_rect *damage)
{
    *damage = (struct iso_rect){0};
    pthread_mutex_lock(&plane->lock);
    if (scanout < ISO_MAX_SCANOUTS) {
        *damage = plane->scanouts[scanout].damage;
        plane->scanouts[scanout].damage = (struct iso_rect){0};
    }
    pthread_mutex_unlock(&plane->lock);
    return damage->width;
}
