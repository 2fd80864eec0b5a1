#include "order.h"

#include "plane_state.h"

#include <stdlib.h>
#include <string.h>

/* For what the order cannot do without: going on without it would show a guest pictures that are not drawn yet. */
static void *need(size_t bytes)
{
    void *memory = calloc(1, bytes);
    if (!memory)
        abort();
    return memory;
}

/* ---- contexts ---- */

struct iso_context *iso_context_new(uint32_t ctx_id, struct iso_lane *lane)
{
    struct iso_context *context = calloc(1, sizeof(*context));
    if (context)
        *context = (struct iso_context){.ctx_id = ctx_id, .refs = 1, .lane = lane, .rings = 1};
    return context;
}

void iso_context_ref(struct iso_context *context)
{
    context->refs++;
}

void iso_context_unref(struct iso_context *context)
{
    if (--context->refs)
        return;
    free(context->peers);
    free(context->mirrored);
    free(context);
}

bool iso_context_is_at(const struct iso_context *context, uint64_t mark)
{
    return context->done < mark && (context->point || !context->lane->lost);
}

/* ---- waiters ---- */

void iso_waiter_release(struct iso_plane *plane, struct iso_waiter *waiter)
{
    if (!waiter || --waiter->points)
        return;
    if (waiter->lane) {
        iso_lane_ready(plane, waiter->lane);
        return;
    }
    if (waiter->for_python)
        iso_plane_post(plane, (struct iso_event){.kind = ISO_EVENT_WORK_DONE, .token = waiter->token, .status = ISO_STATUS_OK});
    free(waiter);
}

void iso_waiter_leave(struct iso_waiter *waiter)
{
    waiter->lane = NULL;
    if (!waiter->points)
        free(waiter);
}

/* The barrier at the end of the lane's backlog, made if there is none; it counts the caller as a point. */
static struct iso_waiter *barrier(struct iso_lane *lane)
{
    struct iso_work *last = lane->backlog_last;
    if (!last || last->kind != ISO_WORK_BARRIER) {
        last = need(sizeof(*last));
        last->kind = ISO_WORK_BARRIER;
        last->waiter = need(sizeof(*last->waiter));
        last->waiter->lane = lane;
        iso_lane_backlog(lane, last);
    }
    last->waiter->points++;
    return last->waiter;
}

/* ---- points ---- */

static struct iso_point *point_new(struct iso_context *context, uint32_t records)
{
    struct iso_point *point = need(sizeof(*point));
    *point = (struct iso_point){.context = context, .mark = context->work, .records = records};
    iso_context_ref(context);
    context->point = point;
    return point;
}

static void point_free(struct iso_point *point)
{
    if (point->context->point == point)
        point->context->point = NULL;
    iso_context_unref(point->context);
    free(point);
}

void iso_point_done(struct iso_plane *plane, struct iso_point *point)
{
    if (--point->records)
        return;
    if (point->context->done < point->mark)
        point->context->done = point->mark;
    while (point->waits) {
        struct iso_wait *wait = point->waits;
        point->waits = wait->next;
        iso_waiter_release(plane, wait->waiter);
        free(wait);
    }
    point_free(point);
}

static struct iso_work *point_work(struct iso_point *point, uint32_t ring_idx)
{
    struct iso_work *work = need(sizeof(*work));
    *work = (struct iso_work){.kind = ISO_WORK_POINT, .ctx_id = point->context->ctx_id, .flags = ISO_FLAG_FENCE,
                              .ring_idx = ring_idx, .point = point};
    return work;
}

struct iso_work *iso_point_refused(struct iso_point *point)
{
    if (point->waits)
        return point_work(point, 0);
    point_free(point);
    return NULL;
}

/* Its worker may turn out to be lost meanwhile, so the point is held until all its fences are on their way. */
static void point_place(struct iso_plane *plane, struct iso_point *point)
{
    struct iso_lane *lane = point->context->lane;
    for (uint64_t rings = point->context->rings; rings && !lane->lost; rings &= rings - 1) {
        point->records++;
        iso_lane_route(plane, lane, point_work(point, (uint32_t)__builtin_ctzll(rings)));
    }
    iso_point_done(plane, point);
}

void iso_waiter_add(struct iso_plane *plane, struct iso_waiter *waiter, struct iso_context *context, uint64_t mark)
{
    if (!iso_context_is_at(context, mark))
        return;
    bool fresh = !context->point || context->point->mark < mark;
    struct iso_point *point = fresh ? point_new(context, 1) : context->point;
    struct iso_wait *wait = need(sizeof(*wait));
    *wait = (struct iso_wait){waiter, point->waits};
    point->waits = wait;
    waiter->points++;
    if (fresh)
        point_place(plane, point);
}

void iso_order_wait(struct iso_plane *plane, struct iso_lane *lane, struct iso_waiter **waiter, struct iso_context *context,
                    uint64_t mark)
{
    if (lane->lost || context->lane == lane || !iso_context_is_at(context, mark))
        return;
    if (!*waiter)
        *waiter = barrier(lane);
    iso_waiter_add(plane, *waiter, context, mark);
}

void iso_order_point(struct iso_plane *plane, struct iso_context *context)
{
    if (iso_context_is_at(context, context->work) && (!context->point || context->point->mark < context->work))
        point_place(plane, point_new(context, 1));
}

/* ---- work ---- */

/* More of the same copies behind those that wait last: one piece of work, however many resources there are. */
static bool copy_with_last(struct iso_lane *lane, const struct iso_context *context, enum iso_work_kind kind, uint32_t resource_id)
{
    enum { STEP = 64 * sizeof(uint32_t) };
    struct iso_work *last = lane->backlog_last;
    if (!last || last->kind != kind || last->ctx_id != context->ctx_id)
        return false;
    if (last->len % STEP == 0) {
        last->bytes = realloc(last->bytes, last->len + STEP);
        if (!last->bytes)
            abort();
    }
    memcpy(last->bytes + last->len, &resource_id, sizeof(resource_id));
    last->len += sizeof(resource_id);
    return true;
}

static void copy(struct iso_plane *plane, struct iso_context *context, enum iso_work_kind kind, uint32_t resource_id)
{
    if (copy_with_last(context->lane, context, kind, resource_id)) {
        context->work = ++plane->clock;
        return;
    }
    struct iso_work *work = need(sizeof(*work));
    *work = (struct iso_work){.kind = kind, .ctx_id = context->ctx_id, .transfer = {.resource_id = resource_id}};
    context->work = ++plane->clock;
    iso_lane_route(plane, context->lane, work);
}

void iso_order_copy_out(struct iso_plane *plane, struct iso_context *context, uint32_t resource_id)
{
    copy(plane, context, ISO_WORK_COPY_OUT, resource_id);
}

/* Contexts on one lane have the same object: there is nothing to copy between them. */
static bool is_elsewhere(const struct iso_resource *resource, const struct iso_context *context)
{
    return !resource->owner || resource->owner->lane != context->lane;
}

static void copy_what_others_have(struct iso_plane *plane, const struct iso_context *context)
{
    for (uint32_t i = 0; i < context->mirrored_count; i++) {
        const struct iso_resource *resource = context->mirrored[i];
        if (resource->owner && is_elsewhere(resource, context) && !resource->owner->lane->lost)
            iso_order_copy_out(plane, resource->owner, resource->id);
    }
}

static void copy_what_is_new(struct iso_plane *plane, struct iso_context *context)
{
    for (uint32_t i = 0; i < context->mirrored_count; i++) {
        struct iso_resource *resource = context->mirrored[i];
        if (is_elsewhere(resource, context))
            copy(plane, context, ISO_WORK_COPY_IN, resource->id);
        resource->owner = context;
    }
}

static void wait_for_peers(struct iso_plane *plane, struct iso_context *context)
{
    struct iso_waiter *waiter = NULL;
    for (uint32_t i = 0; i < context->peer_count; i++) {
        struct iso_peer *peer = &context->peers[i];
        if (peer->seen < peer->context->work)
            iso_order_wait(plane, context->lane, &waiter, peer->context, peer->context->work);
        peer->seen = peer->context->work;
    }
    iso_waiter_release(plane, waiter);
}

void iso_order_route(struct iso_plane *plane, struct iso_context *context, struct iso_work *work)
{
    bool shares = context->peer_count || context->mirrored_count;
    context->rings |= 1ull << work->ring_idx;
    if (shares) {
        copy_what_others_have(plane, context);
        wait_for_peers(plane, context);
        copy_what_is_new(plane, context);
    }
    context->work = ++plane->clock;
    if (shares && work->kind == ISO_WORK_SUBMIT && work->flags == ISO_FLAG_FENCE && context->rings == 1)
        work->point = point_new(context, 1);
    iso_lane_route(plane, context->lane, work);
}
