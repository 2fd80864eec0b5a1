/* Work on its way to workers and back. */
#include "plane_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint32_t response_of(uint32_t status)
{
    switch (status) {
    case ISO_STATUS_OK:
        return ISO_RESP_OK_NODATA;
    case ISO_STATUS_INVALID_PARAMETER:
        return ISO_RESP_ERR_INVALID_PARAMETER;
    case ISO_STATUS_INVALID_RESOURCE:
        return ISO_RESP_ERR_INVALID_RESOURCE_ID;
    case ISO_STATUS_OUT_OF_MEMORY:
        return ISO_RESP_ERR_OUT_OF_MEMORY;
    default:
        return ISO_RESP_ERR_UNSPEC;
    }
}

/* By the guest or Python, who are told of its end. */
static bool is_awaited(const struct iso_work *work)
{
    return work->request || (work->flags && work->kind != ISO_WORK_POINT && work->kind != ISO_WORK_SLOT);
}

/* The end of a piece of work: the guest's request is answered, or Python is told. */
static void work_done(struct iso_plane *plane, struct iso_lane *lane, struct iso_work *work, uint32_t status)
{
    if (work->kind == ISO_WORK_TRANSFER_READ && status == ISO_STATUS_OK &&
        !iso_backing_write_rows(plane->mem, work->backing, &work->rows, lane->staging + work->transfer.offset,
                                work->transfer.stride, work->transfer.layer_stride))
        status = ISO_STATUS_INVALID_PARAMETER; /* guest memory changed under it */
    iso_backing_unref(work->backing);
    work->backing = NULL;
    if (work->point)
        iso_point_done(plane, work->point);
    work->point = NULL;
    if (work->request) {
        iso_request_answer(plane, work->request, response_of(status), NULL, 0);
        return;
    }
    if (work->kind == ISO_WORK_BARRIER)
        iso_waiter_leave(work->waiter);
    if (is_awaited(work))
        iso_plane_post(plane, (struct iso_event){.kind = ISO_EVENT_WORK_DONE, .lane = lane->id, .token = work->token,
                                                 .status = status, .staging_offset = work->transfer.offset, .len = work->transfer.len});
    free(work->bytes);
    free(work);
}

/* What stands before it is not finished with its end: whoever waits for it gets a fence in its place. */
static void refused(struct iso_plane *plane, struct iso_lane *lane, struct iso_work *work)
{
    if (!lane->lost && work->point) {
        struct iso_work *fence = iso_point_refused(work->point);
        work->point = NULL;
        if (fence)
            iso_lane_backlog_first(lane, fence);
    }
    work_done(plane, lane, work, lane->lost ? ISO_STATUS_LOST : ISO_STATUS_INVALID_PARAMETER);
}

/* A request whose command stream has been copied is answered now if nobody fenced it. */
static void placed(struct iso_plane *plane, struct iso_lane *lane, struct iso_work *work, enum iso_place place)
{
    if (place == ISO_PLACE_SENT)
        work_done(plane, lane, work, ISO_STATUS_OK);
    else if (place == ISO_PLACE_REFUSED)
        refused(plane, lane, work);
}

static void backlog_flush(struct iso_plane *plane, struct iso_lane *lane)
{
    while (lane->backlog_first && !iso_lane_is_blocked(lane)) {
        struct iso_work *work = lane->backlog_first;
        enum iso_place place = work->kind == ISO_WORK_BARRIER ? ISO_PLACE_SENT : iso_lane_place(lane, work, plane->mem);
        if (place == ISO_PLACE_FULL) {
            if (iso_lane_want_room(lane))
                continue;
            break;
        }
        iso_lane_backlog_remove(lane, work);
        placed(plane, lane, work, place);
    }
    iso_lane_publish(lane);
}

/* Everything under way on the lane ends with an error; nothing more is placed. */
static void lose(struct iso_plane *plane, struct iso_lane *lane)
{
    lane->lost = true;
    for (uint32_t i = 0; i < lane->pending_count; i++) {
        struct iso_pending *pending = &lane->pending[(lane->pending_first + i) % ISO_LANE_MAX_PENDING];
        struct iso_work *work = pending->work;
        pending->work = NULL;
        if (work && !pending->done) {
            lane->retired += is_awaited(work);
            work_done(plane, lane, work, ISO_STATUS_LOST);
        }
        pending->done = true;
    }
    lane->pending_count = 0;
    while (lane->backlog_first) {
        struct iso_work *work = lane->backlog_first;
        iso_lane_backlog_remove(lane, work);
        lane->retired += is_awaited(work);
        work_done(plane, lane, work, ISO_STATUS_LOST);
    }
}

static void broken(struct iso_plane *plane, struct iso_lane *lane)
{
    lose(plane, lane);
    if (!lane->reported)
        iso_plane_post(plane, (struct iso_event){.kind = ISO_EVENT_LANE_BROKEN, .lane = lane->id});
    lane->reported = true;
}

void iso_lane_route(struct iso_plane *plane, struct iso_lane *lane, struct iso_work *work)
{
    enum iso_place place = lane->backlog_first ? ISO_PLACE_FULL : iso_lane_place(lane, work, plane->mem);
    if (place == ISO_PLACE_FULL) {
        iso_lane_backlog(lane, work);
        backlog_flush(plane, lane);
    } else {
        iso_lane_publish(lane);
        placed(plane, lane, work, place);
    }
    if (lane->lost)
        broken(plane, lane); /* the worker's tail made no sense while we placed */
}

void iso_lane_ready(struct iso_plane *plane, struct iso_lane *lane)
{
    if (lane->ready)
        return;
    lane->ready = true;
    lane->ready_next = plane->ready;
    plane->ready = lane;
}

/* A list, and not at once: it was another lane's end that brought us here, and this one's may come of it. */
void iso_plane_settle(struct iso_plane *plane)
{
    while (plane->ready) {
        struct iso_lane *lane = plane->ready;
        plane->ready = lane->ready_next;
        lane->ready = false;
        if (lane->lost)
            continue;
        backlog_flush(plane, lane);
        if (lane->lost)
            broken(plane, lane);
    }
    iso_queue_notify(plane);
}

static bool take_completion(struct iso_plane *plane, struct iso_lane *lane, const struct iso_completion *completion)
{
    struct iso_pending *pending = iso_lane_find(lane, completion->seq);
    if (!pending || !pending->work)
        return false; /* a number that nobody waits for */
    struct iso_work *work = pending->work;
    uint32_t status = completion->status < ISO_STATUS_LOST ? completion->status : ISO_STATUS_FAILED;
    if (work->kind == ISO_WORK_READBACK && status == ISO_STATUS_OK) {
        /* Its staging memory is Python's until released: the entry stays, without its work. */
        pending->work = NULL;
        work_done(plane, lane, work, status);
        return true;
    }
    work_done(plane, lane, work, status);
    iso_lane_finish(lane, pending);
    return true;
}

void iso_lane_drain(struct iso_plane *plane, struct iso_lane *lane)
{
    struct iso_completion completion;
    int got;
    while ((got = iso_lane_completion(lane, &completion)) == 1)
        if (!take_completion(plane, lane, &completion)) {
            got = -1;
            break;
        }
    if (got < 0)
        broken(plane, lane);
    else if (lane->backlog_first)
        backlog_flush(plane, lane);
    if (lane->lost)
        broken(plane, lane);
}

/* ---- called from Python ---- */

int iso_plane_lane_add(struct iso_plane *plane, struct iso_lane *lane)
{
    int error = -ENOMEM;
    pthread_mutex_lock(&plane->lock);
    if (iso_idmap_get(&plane->lanes, lane->id))
        error = -EEXIST;
    else if (iso_idmap_put(&plane->lanes, lane->id, lane)) {
        error = iso_plane_listen(plane, lane->doorbell_in, ISO_SOURCE_LANE, lane->id);
        if (error)
            iso_idmap_remove(&plane->lanes, lane->id);
    }
    pthread_mutex_unlock(&plane->lock);
    return error;
}

void iso_plane_lane_lost(struct iso_plane *plane, struct iso_lane *lane)
{
    pthread_mutex_lock(&plane->lock);
    if (!lane->lost)
        iso_lane_drain(plane, lane);
    lane->reported = true;
    lose(plane, lane);
    iso_plane_pass(plane);
    pthread_mutex_unlock(&plane->lock);
}

void iso_plane_lane_free(struct iso_plane *plane, struct iso_lane *lane)
{
    pthread_mutex_lock(&plane->lock);
    lose(plane, lane);
    iso_plane_settle(plane);
    for (uint32_t i = 0; i < plane->contexts.capacity; i++) {
        struct iso_context *context = plane->contexts.slots[i].value;
        if (context && context->lane == lane)
            context->lane = &plane->grave;
    }
    iso_idmap_remove(&plane->lanes, lane->id);
    iso_plane_listen(plane, lane->doorbell_in, ISO_SOURCE_NONE, 0);
    iso_plane_pass(plane);
    pthread_mutex_unlock(&plane->lock);
    iso_lane_free(lane);
}

int iso_plane_lane_send(struct iso_plane *plane, struct iso_lane *lane, uint32_t ctx_id, uint32_t flags, uint64_t token,
                        const uint8_t *bytes, uint32_t len)
{
    struct iso_work *work = calloc(1, sizeof(*work));
    uint8_t *copy = malloc(len ? len : 1);
    if (!work || !copy) {
        free(work);
        free(copy);
        return -ENOMEM;
    }
    memcpy(copy, bytes, len);
    *work = (struct iso_work){
        .kind = ISO_WORK_CONTROL, .ctx_id = ctx_id, .flags = flags, .token = token, .len = len, .bytes = copy};
    pthread_mutex_lock(&plane->lock);
    int error = lane->lost ? -EPIPE : 0;
    if (!error)
        iso_lane_route(plane, lane, work);
    iso_plane_settle(plane);
    bool waits = lane->backlog_first;
    pthread_mutex_unlock(&plane->lock);
    if (error) {
        free(copy);
        free(work);
    }
    return error ? error : waits;
}

int iso_plane_lane_readback(struct iso_plane *plane, struct iso_lane *lane, uint32_t ctx_id, uint64_t token,
                            uint32_t resource_id, const struct iso_texture *texture, const struct iso_box *box)
{
    struct iso_rows rows;
    if (!iso_texture_rows(texture, box, 0, 0, 0, 0, &rows))
        return -EINVAL;
    uint64_t layer_stride = (uint64_t)rows.row_bytes * rows.rows;
    if (layer_stride > UINT32_MAX || layer_stride * rows.layers > lane->staging_bytes)
        return -ENOSPC;
    struct iso_work *work = calloc(1, sizeof(*work));
    if (!work)
        return -ENOMEM;
    *work = (struct iso_work){
        .kind = ISO_WORK_READBACK,
        .ctx_id = ctx_id,
        .flags = ISO_FLAG_COMPLETE,
        .token = token,
        .transfer = {.resource_id = resource_id, .x = box->x, .y = box->y, .z = box->z, .w = box->w, .h = box->h, .d = box->d,
                     .stride = rows.row_bytes, .layer_stride = (uint32_t)layer_stride, .len = layer_stride * rows.layers},
    };
    pthread_mutex_lock(&plane->lock);
    int error = lane->lost ? -EPIPE : 0;
    struct iso_context *context = iso_idmap_get(&plane->contexts, ctx_id);
    if (!error && context && context->lane == lane)
        iso_order_route(plane, context, work);
    else if (!error)
        iso_lane_route(plane, lane, work); /* of a context that was forgotten */
    iso_plane_settle(plane);
    pthread_mutex_unlock(&plane->lock);
    if (error)
        free(work);
    return error;
}

void iso_plane_lane_release(struct iso_plane *plane, struct iso_lane *lane, uint64_t token)
{
    pthread_mutex_lock(&plane->lock);
    for (uint32_t i = 0; i < lane->pending_count; i++) {
        struct iso_pending *pending = &lane->pending[(lane->pending_first + i) % ISO_LANE_MAX_PENDING];
        if (!pending->done && !pending->work && pending->token == token) {
            iso_lane_finish(lane, pending);
            break;
        }
    }
    if (!lane->lost && lane->backlog_first) {
        backlog_flush(plane, lane);
        if (lane->lost)
            broken(plane, lane);
        iso_plane_settle(plane);
    }
    pthread_mutex_unlock(&plane->lock);
}

/* The first thing that the worker owes us, whatever it says of its progress; what Python still looks at is no debt. */
static uint64_t oldest_debt(const struct iso_lane *lane)
{
    for (uint32_t i = 0; i < lane->pending_count; i++) {
        const struct iso_pending *pending = &lane->pending[(lane->pending_first + i) % ISO_LANE_MAX_PENDING];
        if (pending->work && !pending->done)
            return pending->seq;
    }
    return 0;
}

static uint64_t at_most(uint64_t value, uint64_t limit)
{
    return value < limit ? value : limit;
}

void iso_plane_lane_progress(struct iso_plane *plane, struct iso_lane *lane, struct iso_lane_progress *out)
{
    pthread_mutex_lock(&plane->lock);
    *out = (struct iso_lane_progress){
        .waiting = lane->pending_count,
        .oldest = oldest_debt(lane),
        .begun = at_most(atomic_load(&lane->ring->begun), lane->next_seq - 1),
        .consumed = at_most(atomic_load(&lane->ring->cmd_tail), lane->cmd_head),
        .completed = lane->cpl_tail,
        .backlog = lane->backlog_count,
        .blocked = iso_lane_is_blocked(lane),
        .submits = lane->submits,
        .submit_bytes = lane->submit_bytes,
        .transfers = lane->transfers,
        .transfer_bytes = lane->transfer_bytes,
    };
    pthread_mutex_unlock(&plane->lock);
}

void iso_plane_lane_history(struct iso_plane *plane, struct iso_lane *lane, struct iso_lane_history *out)
{
    pthread_mutex_lock(&plane->lock);
    iso_history_tell(&lane->history, atomic_load(&lane->ring->begun), atomic_load(&lane->ring->cmd_tail), out);
    out->retired = lane->retired;
    pthread_mutex_unlock(&plane->lock);
}

bool iso_plane_lane_trim(struct iso_plane *plane, struct iso_lane *lane)
{
    pthread_mutex_lock(&plane->lock);
    bool more = iso_lane_trim(lane);
    pthread_mutex_unlock(&plane->lock);
    return more;
}
