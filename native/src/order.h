/*
 * Order between contexts that share resources.
 *
 * Theory of operation
 *
 * A guest puts everything on one queue and relies on its order: what one program drew before another program's commands
 * that read it has been drawn by then. Inside of a context its ring keeps that order; between two workers nothing does. So
 * the plane knows which contexts are peers, that is, have a resource in common, and before it routes work of a context
 * (a submit, a transfer, a readback; not a message of Python's) it makes that work wait for the peers' work so far.
 *
 * Three things are made of that:
 * - a point: a fence on a peer's lane, behind all that the peer was sent. It has passed when the driver has finished all of
 *   that, or the worker is gone. A submit that the guest fenced is a point as it is. Whoever waits for the same work later
 *   waits for the same point.
 * - a barrier: in the backlog of the lane that has to wait. It counts the points that it waits for, and nothing behind it is
 *   placed before the last one has passed.
 * - copies, for resources that are mirrored (mirror.h): the object with the latest contents is that of the resource's owner,
 *   the context which was last sent work. A COPY_OUT goes on the owner's lane before the point, a COPY_IN behind the
 *   barrier, and then the context is the owner. A worker skips a copy that would bring nothing new.
 *
 * Work is numbered over all contexts, in queue order. A context's `work` is its last number, and `done` the last one known to
 * be finished; the two tell whether anybody has to wait at all. Contexts on one lane are in order as they are, and a context
 * without peers pays for one comparison.
 *
 * Nothing can wait in a circle. What is made, is made at a time: a point, a barrier and a piece of work wait only for what
 * was made before them, namely for what stands before them on their own lane and, a barrier, for its points. A barrier that
 * is the last in its backlog may get further points; it counts as made anew then, which changes nothing for others, as
 * nothing stands behind it. The one thing that waits for something later is a slot (iso_plane_lane_reserve), for Python:
 * Python must not make filling it wait for anything that was placed on that context behind it.
 *
 * A context may give a resource up, or end, with work under way that touches it. Its peers get their barrier right then.
 * The resource remembers it as a user that `left`, for contexts that get the resource later; such a user holds the context,
 * which may have been forgotten otherwise.
 */
#ifndef ISOREND_ORDER_H
#define ISOREND_ORDER_H

#include "lane.h"

struct iso_plane;
struct iso_resource;

/* Another context with some of the same resources. */
struct iso_peer {
    struct iso_context *context;
    uint32_t shared; /* how many resources */
    uint64_t seen;   /* its work up to here is behind us: there was a barrier for it */
};

struct iso_context {
    uint32_t ctx_id, refs;
    struct iso_lane *lane;   /* plane->grave once the context was forgotten or its lane freed */
    uint64_t work, done;
    uint64_t rings;          /* mask of the ring_idx it ever used: each has fences of its own */
    struct iso_point *point; /* the latest that has not passed, or NULL */
    uint32_t resources;      /* how many it has */
    uint32_t peer_count, peer_capacity, mirrored_count, mirrored_capacity;
    struct iso_peer *peers;
    struct iso_resource **mirrored; /* those of its resources */
};

struct iso_point {
    struct iso_context *context; /* held */
    uint64_t mark;               /* the context's work up to here */
    uint32_t records;            /* to be completed: a fence for each ring_idx */
    struct iso_wait *waits;
};

struct iso_wait {
    struct iso_waiter *waiter;
    struct iso_wait *next;
};

/* What points are waited for by: a barrier, or Python (iso_plane_resource_sync). */
struct iso_waiter {
    uint32_t points;       /* that have not passed */
    struct iso_lane *lane; /* in whose backlog the barrier stands; NULL once it is lost */
    bool for_python;
    uint64_t token;        /* Python's */
};

/* A context that was bound to a lane. NULL if out of memory. */
struct iso_context *iso_context_new(uint32_t ctx_id, struct iso_lane *lane);
void iso_context_ref(struct iso_context *context);
void iso_context_unref(struct iso_context *context);
/* Whether its work up to `mark` may still be under way. */
bool iso_context_is_at(const struct iso_context *context, uint64_t mark);

/* Puts work of a living context on its way, behind all that it has to wait for. */
void iso_order_route(struct iso_plane *plane, struct iso_context *context, struct iso_work *work);
/* Copies a mirrored resource of a living context out, in order with its other work. */
void iso_order_copy_out(struct iso_plane *plane, struct iso_context *context, uint32_t resource_id);
/* Makes sure that there is a point behind all its work. */
void iso_order_point(struct iso_plane *plane, struct iso_context *context);

/*
 * Waiting: *waiter starts as NULL and is made when there is something to wait for. iso_order_wait makes a lane wait for
 * another context's work up to `mark`. iso_waiter_add is the same for a waiter that exists. Whoever made or was given a
 * waiter calls iso_waiter_release at the end, once; NULL is allowed.
 */
void iso_order_wait(struct iso_plane *plane, struct iso_lane *lane, struct iso_waiter **waiter, struct iso_context *context,
                    uint64_t mark);
void iso_waiter_add(struct iso_plane *plane, struct iso_waiter *waiter, struct iso_context *context, uint64_t mark);
void iso_waiter_release(struct iso_plane *plane, struct iso_waiter *waiter);
/* Its barrier leaves the backlog: it was passed, or the lane is lost. */
void iso_waiter_leave(struct iso_waiter *waiter);

/* One of the point's records has been completed, or its lane is lost. */
void iso_point_done(struct iso_plane *plane, struct iso_point *point);
/*
 * The submit that was a point cannot be placed. Returns a fence to be placed instead, or NULL if nobody waits for it.
 */
struct iso_work *iso_point_refused(struct iso_point *point);

#endif
