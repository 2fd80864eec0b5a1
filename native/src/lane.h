/*
 * A lane: the master's end of one worker's rings (ring.h), with the worker's staging memory and what is under way there.
 * It serves one context, or several where workers are shared.
 *
 * Work is placed in order. When the command ring or the staging memory is full it waits in the lane's own backlog, so that
 * one slow context never stops the shared virtqueue. It waits there, too, for other contexts (order.h) and for messages that
 * Python cannot write yet. Work that will be answered is remembered in `pending`, ascending by
 * sequence number; staging memory is given back in that same order.
 *
 * Nothing here locks: a lane belongs to one plane and is used under the plane's lock.
 */
#ifndef ISOREND_LANE_H
#define ISOREND_LANE_H

#include "backing.h"
#include "lane_history.h"
#include "ring.h"

#include <stdbool.h>

#define ISO_LANE_MAX_PENDING 4096u /* no more than completions fit in their ring */
/* Work in a backlog beyond which commands are refused: each can bring copies of many resources, which wait there too. */
#define ISO_LANE_MAX_BACKLOG 16384u

struct iso_request;
struct iso_point;
struct iso_waiter;

enum iso_work_kind {
    ISO_WORK_SUBMIT,         /* the command stream behind the request's command */
    ISO_WORK_TRANSFER_WRITE, /* guest backing -> resource */
    ISO_WORK_TRANSFER_READ,  /* resource -> guest backing */
    ISO_WORK_CONTROL,        /* a message from Python */
    ISO_WORK_READBACK,       /* resource -> staging memory, for Python to look at */
    ISO_WORK_POINT,          /* a fence for whoever waits for this context (order.h) */
    ISO_WORK_COPY_OUT,       /* object -> mirror */
    ISO_WORK_COPY_IN,        /* mirror -> object */
    ISO_WORK_BARRIER,        /* nothing to be done; waits for points of other contexts */
    ISO_WORK_SLOT,           /* nothing yet; waits for Python to fill it */
};

/* One thing to be done by a worker. Requests carry theirs; Python's are allocated. */
struct iso_work {
    struct iso_work *next; /* in a backlog */
    enum iso_work_kind kind;
    uint32_t flags, ring_idx, ctx_id; /* of the record */
    struct iso_request *request;  /* the guest's request to answer, or NULL */
    uint64_t token;               /* Python's name for its work */
    struct iso_transfer transfer; /* kinds TRANSFER_* and READBACK; offset is filled in when placed. COPY_*: its resource_id */
    struct iso_rows rows;         /* where the box lies in the backing */
    struct iso_backing *backing;  /* held, or NULL */
    uint32_t len;                 /* bytes of payload */
    uint8_t *bytes;               /* kind CONTROL: payload, owned; kinds COPY_*: ids of more resources, 4 bytes each */
    uint32_t taken;               /* kinds COPY_*: how many of those have been placed */
    struct iso_point *point;      /* kinds SUBMIT and POINT: passed with it, or NULL */
    struct iso_waiter *waiter;    /* kind BARRIER */
};

struct iso_pending {
    uint64_t seq;
    uint64_t staging_end; /* staging memory before this is free once this and all before it are done; 0: none used */
    struct iso_work *work; /* NULL for a readback whose staging memory Python is still looking at */
    uint64_t token;        /* the work's, which outlives it there */
    bool done;
};

struct iso_lane {
    uint32_t id;     /* Python's name for it */
    bool lost;       /* the worker died or broke the rules: nothing more is placed or believed */
    bool reported; /* Python knows that it is lost */
    struct iso_ring_header *ring;
    uint8_t *staging;
    uint64_t staging_bytes;
    int doorbell_out, doorbell_in; /* a pipe's end towards the worker, an eventfd from it; owned */
    uint64_t cmd_head, cmd_tail, cpl_tail; /* ours; the shared ones are only published or read */
    uint64_t published;                    /* cmd_head as the worker last saw it */
    uint64_t next_seq;
    uint64_t staging_head, staging_tail; /* bytes since the start, modulo staging_bytes they are places */
    uint32_t pending_first, pending_count;
    struct iso_pending *pending; /* ISO_LANE_MAX_PENDING of them, a ring */
    struct iso_work *backlog_first, *backlog_last;
    uint32_t backlog_count;
    bool ready; /* its backlog may go on; on the plane's list of those */
    struct iso_lane *ready_next;
    uint64_t submits, transfers, submit_bytes, transfer_bytes; /* statistics */
    uint64_t staging_used; /* bytes at the start of staging memory that may have pages */
    uint64_t retired;      /* completions awaited when it was lost */
    uint32_t limits_told;  /* mask of enum iso_limit: Python has heard of these */
    struct iso_history history;
};

enum iso_place {
    ISO_PLACE_FULL,    /* no room now; nothing happened */
    ISO_PLACE_SENT,    /* placed, and nothing will come back */
    ISO_PLACE_PENDING, /* placed; the completion will finish it */
    ISO_PLACE_REFUSED, /* can never be done: too large, or guest memory that is not there */
};

/*
 * Maps the worker's memories and takes over the two doorbells (dup'ed). doorbell_out must be non-blocking and no open file
 * of the worker's, who could change that. NULL with errno set on failure.
 */
struct iso_lane *iso_lane_new(uint32_t id, int ring_fd, int staging_fd, uint64_t staging_bytes, int doorbell_out, int doorbell_in);
void iso_lane_free(struct iso_lane *lane);

/* Tries to place one piece of work; see enum iso_place. `mem` is where guest bytes come from. */
enum iso_place iso_lane_place(struct iso_lane *lane, struct iso_work *work, const struct iso_guestmem *mem);
void iso_lane_backlog(struct iso_lane *lane, struct iso_work *work);
void iso_lane_backlog_first(struct iso_lane *lane, struct iso_work *work);
void iso_lane_backlog_remove(struct iso_lane *lane, struct iso_work *work);
/* Whether the backlog waits for something other than room: points that have not passed, or a slot that is not filled. */
bool iso_lane_is_blocked(const struct iso_lane *lane);
/* Gives a piece of staging memory back to the system if nothing is under way there. True if there is more to give. */
bool iso_lane_trim(struct iso_lane *lane);
/* Publishes what was placed and rings if the worker sleeps. */
void iso_lane_publish(struct iso_lane *lane);
/* Says that we wait for room, then looks again. Returns true if there is some now. */
bool iso_lane_want_room(struct iso_lane *lane);

/* The next completion. 1: *out is a copy; 0: none, and the worker will ring; -1: the worker broke the rules. */
int iso_lane_completion(struct iso_lane *lane, struct iso_completion *out);
/* What waits for this sequence number, or NULL. */
struct iso_pending *iso_lane_find(struct iso_lane *lane, uint64_t seq);
/* Marks it done and gives back staging memory as far as the order allows. */
void iso_lane_finish(struct iso_lane *lane, struct iso_pending *pending);

#endif
