/* Places in a lane's backlog for messages that Python cannot write yet. */
#include "plane_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int iso_plane_lane_reserve(struct iso_plane *plane, struct iso_lane *lane, uint32_t ctx_id, uint64_t slot)
{
    struct iso_work *work = calloc(1, sizeof(*work));
    if (!work)
        return -ENOMEM;
    *work = (struct iso_work){.kind = ISO_WORK_SLOT, .ctx_id = ctx_id, .token = slot};
    pthread_mutex_lock(&plane->lock);
    int error = lane->lost ? -EPIPE : 0;
    if (!error)
        iso_lane_backlog(lane, work);
    pthread_mutex_unlock(&plane->lock);
    if (error)
        free(work);
    return error;
}

static struct iso_work *slot_of(const struct iso_lane *lane, uint64_t slot)
{
    struct iso_work *work = lane->backlog_first;
    while (work && (work->kind != ISO_WORK_SLOT || work->token != slot))
        work = work->next;
    return work;
}

/* Turns the slot into a message. */
static void fill(struct iso_work *work, uint32_t flags, uint64_t token, uint8_t *bytes, uint32_t len)
{
    work->kind = ISO_WORK_CONTROL;
    work->flags = flags;
    work->token = token;
    work->bytes = bytes;
    work->len = len;
}

int iso_plane_lane_fill(struct iso_plane *plane, struct iso_lane *lane, uint64_t slot, uint32_t flags, uint64_t token,
                        const uint8_t *bytes, uint32_t len)
{
    uint8_t *copy = len ? malloc(len) : NULL;
    if (len && !copy)
        return -ENOMEM;
    if (len)
        memcpy(copy, bytes, len);
    pthread_mutex_lock(&plane->lock);
    struct iso_work *work = slot_of(lane, slot);
    int error = lane->lost ? -EPIPE : work ? 0 : -ENOENT;
    if (error) {
        free(copy);
    } else {
        if (len) {
            fill(work, flags, token, copy, len);
        } else {
            iso_lane_backlog_remove(lane, work);
            free(work);
        }
        iso_lane_ready(plane, lane);
        iso_plane_settle(plane);
    }
    pthread_mutex_unlock(&plane->lock);
    return error;
}
