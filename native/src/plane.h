/*
 * The data plane: virtqueues on one side, workers' lanes on the other, and a thread of its own in between that never holds
 * the interpreter's lock.
 *
 * The one way of a command: the plane takes a chain from a queue and copies its header. SUBMIT_3D and TRANSFER_*_3D it
 * checks and places on the context's lane itself; what 2D guests send all day (TRANSFER_TO_HOST_2D, RESOURCE_FLUSH and the
 * SET_SCANOUT of a page flip) it does itself when that is short and nothing is wrong with it. Everything else it hands to
 * Python in order. It does not go past a
 * command that Python has yet to place: a submit behind such commands waits (`stalled`) until Python has asked for the next
 * command and there was none. So the order of the queue is the order in which things reach a context.
 *
 * Python calls in from its own thread; one lock covers everything here. Copies of 2D pictures (iso_backing_*_rows called by
 * Python) happen outside of it.
 */
#ifndef ISOREND_PLANE_H
#define ISOREND_PLANE_H

#include "request.h"
#include "texture.h"

/* The longest command that Python is handed: a backing of ISO_BACKING_MAX_ENTRIES, generously. Longer ones get an error. */
#define ISO_COMMAND_MAX_BYTES ((uint64_t)ISO_BACKING_MAX_ENTRIES * 16 + 4096)

#define ISO_MAX_SCANOUTS 16u /* VIRTIO_GPU_MAX_SCANOUTS */

struct iso_plane;
struct iso_mirror_header;

enum iso_event_kind {
    ISO_EVENT_NONE,
    ISO_EVENT_COMMAND,      /* request, queue, len; the bytes are in the buffer */
    ISO_EVENT_WORK_DONE,    /* lane, token, status; for a readback staging_offset and len */
    ISO_EVENT_LANE_BROKEN,  /* lane: its worker broke the rules of the ring */
    ISO_EVENT_QUEUE_BROKEN, /* queue: the driver's available index is impossible */
    ISO_EVENT_FLIPPED,      /* scanout: it shows `part` of `resource` by now */
    ISO_EVENT_LIMIT,        /* lane, token (a context id), status (enum iso_limit): told once for each lane */
};

/* What one command may not be larger than. */
enum iso_limit {
    ISO_LIMIT_SUBMIT = 1,   /* half of the command ring */
    ISO_LIMIT_TRANSFER = 2, /* staging memory */
};

struct iso_rect {
    uint32_t x, y, width, height;
};

struct iso_event {
    uint32_t kind, queue, lane, status, scanout, resource;
    struct iso_rect part;
    uint64_t request, token, staging_offset, len;
};

struct iso_plane_stats {
    uint64_t commands, handed, responses, errors, malformed, calls, kicks;
};

struct iso_plane *iso_plane_new(void);
/* Starts the thread. Returns 0 or -errno. */
int iso_plane_start(struct iso_plane *plane);
/* Stops the thread; lanes must have been freed. */
void iso_plane_free(struct iso_plane *plane);
/* An eventfd, readable when iso_plane_take has something. Owned by the plane. */
int iso_plane_event_fd(const struct iso_plane *plane);

/* ---- memory and queues, as the front end says ---- */

/* Replaces guest memory (takes its own reference; NULL: none). Returns how many started queues lie outside it. */
int iso_plane_set_memory(struct iso_plane *plane, struct iso_guestmem *mem);
/* Sets a stopped queue up. Returns 0, -EINVAL (size not a power of two up to ISO_VQ_MAX_NUM, or it runs). */
int iso_plane_queue_setup(struct iso_plane *plane, uint32_t queue, uint32_t num, uint64_t desc_uva, uint64_t avail_uva,
                          uint64_t used_uva, uint16_t base, bool event_idx);
/* Hands over eventfds (dup'ed); -1 takes one away. */
int iso_plane_queue_call(struct iso_plane *plane, uint32_t queue, int fd);
int iso_plane_queue_err(struct iso_plane *plane, uint32_t queue, int fd);
/* Starts the queue with its kick eventfd (dup'ed). -EINVAL if it has no size, -EFAULT if its rings are not in guest memory. */
int iso_plane_queue_start(struct iso_plane *plane, uint32_t queue, int kick_fd);
int iso_plane_queue_enable(struct iso_plane *plane, uint32_t queue, bool enable);
/* Takes no more chains from it; what is open may still complete. Returns the next available index. */
uint16_t iso_plane_queue_stop(struct iso_plane *plane, uint32_t queue);
/* Requests taken from the queue and not yet on its used ring. */
uint32_t iso_plane_queue_open(struct iso_plane *plane, uint32_t queue);
/* Answers everything open of a queue with ERR_UNSPEC; whoever completes one of these later is ignored. */
void iso_plane_queue_abandon(struct iso_plane *plane, uint32_t queue);
void iso_plane_set_ring_idx(struct iso_plane *plane, bool enabled); /* VIRTIO_GPU_F_CONTEXT_INIT was negotiated */

/* ---- commands for Python ---- */

/*
 * The next event. Returns 1; 0 if there is none (everything taken before counts as placed now, and the guest is notified);
 * -ENOBUFS if the command needs event->len bytes and `capacity` is less (nothing was taken).
 */
int iso_plane_take(struct iso_plane *plane, struct iso_event *event, uint8_t *buffer, uint64_t capacity);
/*
 * Answers a request with `type` and `len` bytes of payload behind the header; fence fields are echoed. Returns 0 or -ENOENT
 * if there is no such open request (answered before, or abandoned).
 */
int iso_plane_complete(struct iso_plane *plane, uint64_t request, uint32_t type, const uint8_t *payload, uint32_t len);
/* Tells the guest of what was pushed since; for completions outside of a take loop. */
void iso_plane_flush(struct iso_plane *plane);

/* ---- what the fast path knows of contexts and resources; Python's table is the truth ---- */

/* Takes the lane into the plane and listens to its doorbell. Returns 0 or -errno. */
int iso_plane_lane_add(struct iso_plane *plane, struct iso_lane *lane);
/*
 * Commands of ctx_id go to the lane from now on; a shared lane has several contexts. Where contexts share resources the plane
 * keeps their work in the order of the queue (order.h). Returns 0, -EEXIST or -ENOMEM.
 */
int iso_plane_lane_bind(struct iso_plane *plane, struct iso_lane *lane, uint32_t ctx_id);
/* The context is destroyed: its id is free again, and it has no resources. What was placed before still runs. */
void iso_plane_context_forget(struct iso_plane *plane, uint32_t ctx_id);
/* Its worker is gone: takes in the last completions, then answers everything under way there with an error. */
void iso_plane_lane_lost(struct iso_plane *plane, struct iso_lane *lane);
/* Loses and frees it. Its contexts, if not forgotten, answer ERR_UNSPEC from then on. */
void iso_plane_lane_free(struct iso_plane *plane, struct iso_lane *lane);
/*
 * Sends a control message in order with everything else of the context; its end comes as WORK_DONE if `flags` say so.
 * Returns 0; 1 if the lane is full and the message waits; -EPIPE or -ENOMEM.
 */
int iso_plane_lane_send(struct iso_plane *plane, struct iso_lane *lane, uint32_t ctx_id, uint32_t flags, uint64_t token,
                        const uint8_t *bytes, uint32_t len);
/*
 * Reads level 0 of a box of a resource into staging memory, rows packed; WORK_DONE tells where. The memory stays taken
 * until iso_plane_lane_release. -EINVAL: box or format impossible, -ENOSPC: larger than staging memory, -EPIPE: lane lost.
 */
int iso_plane_lane_readback(struct iso_plane *plane, struct iso_lane *lane, uint32_t ctx_id, uint64_t token,
                            uint32_t resource_id, const struct iso_texture *texture, const struct iso_box *box);
void iso_plane_lane_release(struct iso_plane *plane, struct iso_lane *lane, uint64_t token);
/*
 * For hang detection: work that somebody waits for, the oldest of it (its sequence number, 0: none), the record being
 * executed, bytes of records consumed, completions seen. begun and consumed are the worker's own words, within limits.
 * blocked: the backlog waits for other contexts or for a slot, and not for this worker.
 */
struct iso_lane_progress {
    uint64_t waiting, oldest, begun, consumed, completed, backlog, submits, submit_bytes, transfers, transfer_bytes;
    bool blocked;
};
void iso_plane_lane_progress(struct iso_plane *plane, struct iso_lane *lane, struct iso_lane_progress *out);
/* What it was sent lately; also of a lane that is lost. */
void iso_plane_lane_history(struct iso_plane *plane, struct iso_lane *lane, struct iso_lane_history *out);
/* iso_lane_trim(), for lanes that have been idle for a while. */
bool iso_plane_lane_trim(struct iso_plane *plane, struct iso_lane *lane);

/*
 * A place in the order of a context, for a message that cannot be written yet: what comes later waits behind it. `slot` is
 * Python's name for it, one of its tokens. Returns 0, -EPIPE or -ENOMEM.
 */
int iso_plane_lane_reserve(struct iso_plane *plane, struct iso_lane *lane, uint32_t ctx_id, uint64_t slot);
/*
 * Puts a control message there, as iso_plane_lane_send does at the end; len 0: nothing, the place is given up. Must not have
 * to wait for what stands behind it (order.h). Returns 0, -EPIPE (the lane is lost, and its slots with it), -ENOENT or -ENOMEM.
 */
int iso_plane_lane_fill(struct iso_plane *plane, struct iso_lane *lane, uint64_t slot, uint32_t flags, uint64_t token,
                        const uint8_t *bytes, uint32_t len);

/*
 * The resource is mirrored (mirror.h) from now on, until it is removed: all contexts that have it get a copy of the mirror
 * when they next do something. `owner` is the context whose object has the latest contents, one that has the resource; 0: the
 * mirror has. `header` is the mirror's, valid until the resource is removed, where the mirror is written on this side; NULL
 * where it never is. Once more: it has another owner and header. Returns 0, -ENOENT or -ENOMEM.
 */
int iso_plane_resource_mirror(struct iso_plane *plane, uint32_t resource_id, uint32_t owner, struct iso_mirror_header *header);
/*
 * It is not mirrored any more: its contents have storage that all contexts share. What was to be copied so far still is, which
 * is nothing to an object without a mirror.
 */
void iso_plane_resource_unmirror(struct iso_plane *plane, uint32_t resource_id);
/*
 * This side has written the contents of a mirrored resource: they are newer than every object. The plane does the same where
 * it writes pixels itself (iso_plane_resource_picture, whose pixels lie in the mirror then). What a context drew since
 * contents were last copied out is lost.
 */
void iso_plane_resource_written(struct iso_plane *plane, uint32_t resource_id);
/*
 * WORK_DONE with this token (lane 0, status OK) comes when everything is finished that contexts which have the resource
 * or had the resource were sent so far, or they are gone; a mirror is up to date then. Returns 0, -ENOENT or -ENOMEM.
 */
int iso_plane_resource_sync(struct iso_plane *plane, uint32_t resource_id, uint64_t token);

int iso_plane_resource_set(struct iso_plane *plane, uint32_t resource_id, const struct iso_texture *texture);
/* Holds a reference; NULL detaches. */
int iso_plane_resource_backing(struct iso_plane *plane, uint32_t resource_id, struct iso_backing *backing);
/*
 * The resource's storage is guest memory that workers see, too: transfers of it are answered without anything being done.
 * Returns 0 or -ENOENT.
 */
int iso_plane_resource_guest_memory(struct iso_plane *plane, uint32_t resource_id);
/* The context, bound to a lane, has the resource from now on. Returns 0 (also if it had it), -ENOENT or -ENOMEM. */
int iso_plane_resource_attach(struct iso_plane *plane, uint32_t resource_id, uint32_t ctx_id);
void iso_plane_resource_detach(struct iso_plane *plane, uint32_t resource_id, uint32_t ctx_id);
/*
 * The resource is a picture of width x height pixels of four bytes. `pixels` is its shadow, rows packed, valid until
 * iso_plane_resource_remove(); NULL if the picture is in a worker. Returns 0 or -ENOENT.
 */
int iso_plane_resource_picture(struct iso_plane *plane, uint32_t resource_id, uint32_t width, uint32_t height, uint8_t *pixels);
/* The scanout shows this part of the resource from now on; resource 0: nothing. Else its damage stays. */
void iso_plane_scanout_show(struct iso_plane *plane, uint32_t scanout, uint32_t resource_id, const struct iso_rect *part);
/*
 * What was flushed since the last call, the smallest rectangle around it, in pixels from the part's corner (which may have
 * moved since). False if there was nothing. The event descriptor turns readable when there is something.
 */
bool iso_plane_scanout_damage(struct iso_plane *plane, uint32_t scanout, struct iso_rect *damage);
void iso_plane_resource_remove(struct iso_plane *plane, uint32_t resource_id);

void iso_plane_get_stats(struct iso_plane *plane, struct iso_plane_stats *out);

#endif
