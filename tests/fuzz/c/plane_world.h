/*
 * A data plane without its thread, and all that it stands between, played by the input: a guest with two virtqueues, Python
 * above, workers at the other ends of their rings. Every step happens when the input says so, so an input always does the
 * same.
 */
#ifndef ISOREND_FUZZ_PLANE_WORLD_H
#define ISOREND_FUZZ_PLANE_WORLD_H

#include "guest.h"
#include "mirror.h"
#include "plane_state.h"

enum { LANES = 3, RESOURCES = 6, CONTEXTS = 4, MAX_WAITING = 64, STAGING_BYTES = 8192, SLOTS = 16 };

#define SYNC_TOKEN (1ull << 63)

/* The worker's end of a lane. */
struct played {
    struct iso_lane *lane; /* NULL: there is none */
    struct iso_ring_header *ring;
    uint8_t *staging;
    uint64_t tail, seen_seq, completed;
    struct iso_record waiting[MAX_WAITING]; /* records that want a completion */
    uint32_t waiting_count;
    bool scribbled; /* by the worker itself: nothing in the ring has to make sense any more */
};

struct world {
    struct input input;
    struct iso_plane *plane;
    struct iso_guestmem *memory;
    uint16_t offered[ISO_QUEUE_COUNT]; /* the driver's available indices */
    uint32_t place;                    /* in guest memory, where the next command goes */
    uint64_t fence_id, token, held[MAX_WAITING];
    uint32_t held_count; /* commands that Python has not answered */
    struct played lanes[LANES];
    uint8_t *pixels[RESOURCES + 1];
    struct iso_mirror_header mirrors[RESOURCES + 1];
    uint64_t slots[SLOTS], slot_count; /* places kept, the latest of them */
    uint64_t syncs_asked, syncs_told;
};

void world_open(struct world *world, const uint8_t *data, size_t size);
/* As the device ends: workers lost, queues abandoned. Nothing may be open then. */
void world_close(struct world *world);

/* One step each. */
void guest_sends(struct world *world);
void guest_scribbles(struct world *world);
void front_end_acts(struct world *world);
void python_takes(struct world *world);
void python_answers(struct world *world);
void python_knows_resources(struct world *world);
void python_uses_lanes(struct world *world);
void python_shares(struct world *world); /* plane_sharing.c */
void plane_passes(struct world *world);

/* plane_workers.c */
struct played *any_lane(struct world *world); /* NULL: the one chosen is not there */
void lane_opens(struct world *world);
void lane_closes(struct world *world, struct played *played);
/* The worker takes what is in its ring, which must be in order unless it wrote there, and remembers what it owes. */
void worker_consumes(struct played *played);
void worker_completes(struct played *played, uint64_t seq, uint32_t status);
/* The plane looks at a lane, rung or not. */
void plane_hears(struct world *world, struct played *played);

#endif
