/*
 * Timeline syncs (protocol version 3): 64-bit values that only the client's commands and passed fences change, and eventfds
 * that turn readable when enough of them have reached a value.
 */
#ifndef ISOREND_VTEST_SYNCS_H
#define ISOREND_VTEST_SYNCS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "idmap.h"

#define ISO_VTEST_MAX_SYNCS (1u << 16)
#define ISO_VTEST_MAX_WAITS 448u      /* that are not over: each has a descriptor */
#define ISO_VTEST_MAX_SYNCS_AT_ONCE 1024u /* in one wait or one batch */
#define ISO_VTEST_MAX_PENDING 4096u   /* batches whose syncs wait for a fence */

struct iso_sync {
    uint32_t id;
    uint32_t references; /* the table's, the waits' and the pending batches' */
    uint64_t value;
};

struct iso_sync_point {
    struct iso_sync *sync;
    uint64_t value;
};

struct iso_sync_wait {
    struct iso_sync_wait *next;
    int fd;
    uint64_t until_ns; /* nobody looks at it any more */
    uint32_t left;     /* points to be reached before it is over */
    uint32_t count;
    struct iso_sync_point points[];
};

struct iso_sync_pending {
    struct iso_sync_pending *next;
    void *fence;
    uint32_t count;
    struct iso_sync_point points[];
};

struct iso_syncs {
    struct iso_idmap map;
    uint32_t next_id;
    struct iso_sync_wait *waits;
    uint32_t wait_count;
    struct iso_sync_pending *first, *last;
    uint32_t pending_count;
};

/* NULL with errno: EDQUOT, ENOMEM. */
struct iso_sync *iso_sync_new(struct iso_syncs *syncs, uint64_t value);
struct iso_sync *iso_sync_get(const struct iso_syncs *syncs, uint32_t id);
/* Forget the id; who waits for the sync still does. An unknown id is no error. */
void iso_sync_drop(struct iso_syncs *syncs, uint32_t id);
void iso_sync_signal(struct iso_syncs *syncs, struct iso_sync *sync, uint64_t value);

/*
 * A new wait for `count` points {id, value low, value high}; *fd is the caller's to close. `any`: the first one reached ends
 * it. Returns 0, or -1 with errno: ENOENT (unknown sync), EDQUOT, ENOMEM, EMFILE. timeout_ms UINT32_MAX: no end.
 */
int iso_sync_wait(struct iso_syncs *syncs, const uint32_t *points, uint32_t count, bool any, uint32_t timeout_ms, int *fd);

/* Points that are reached when `fence` is passed. 0 or -1 with errno (the fence stays the caller's then). */
int iso_sync_pend(struct iso_syncs *syncs, const uint32_t *points, uint32_t count, void *fence);
/* The oldest fence that is waited for, NULL if there is none; and what follows when it is passed. */
void *iso_sync_oldest(const struct iso_syncs *syncs);
void iso_sync_passed(struct iso_syncs *syncs);

void iso_syncs_release(struct iso_syncs *syncs);

#endif
