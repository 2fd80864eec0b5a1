/*
 * What a lane's worker was sent lately, for whoever wants to know what a worker was at when it died.
 *
 * The records are noted here when they are placed, so that a worker cannot change what is said of them; in the ring it could.
 */
#ifndef ISOREND_LANE_HISTORY_H
#define ISOREND_LANE_HISTORY_H

#include <stdint.h>

#define ISO_HISTORY_KEPT 64u  /* records in which one under way is looked for */
#define ISO_HISTORY_LATEST 8u /* of these told */

struct iso_work;

struct iso_placed {
    uint64_t seq;         /* 0: no record */
    uint64_t end;         /* where the next record starts, in bytes since the start of the ring */
    uint64_t bytes;       /* of the command stream, the transferred box or the message */
    uint32_t kind;        /* enum iso_work_kind; ISO_PLACED_UNKNOWN: it was placed too long ago */
    uint32_t ctx_id;
    uint32_t resource_id; /* of a transfer, or of a message whose first field that is */
    uint32_t message;     /* id of a control message */
};

enum { ISO_PLACED_UNKNOWN = 255 };

struct iso_history {
    struct iso_placed kept[ISO_HISTORY_KEPT]; /* a ring */
    uint64_t count;                           /* ever noted */
};

/* What was told: `count` of the latest, oldest first; the record that was begun and not consumed, seq 0 if there is none. */
struct iso_lane_history {
    struct iso_placed latest[ISO_HISTORY_LATEST];
    uint32_t count;
    struct iso_placed under_way;
    uint64_t retired; /* completions that were still awaited when the lane was lost */
};

void iso_history_note(struct iso_history *history, const struct iso_work *work, uint64_t seq, uint64_t end);
/* `begun` and `consumed` are the worker's own words, within limits. */
void iso_history_tell(const struct iso_history *history, uint64_t begun, uint64_t consumed, struct iso_lane_history *out);

#endif
