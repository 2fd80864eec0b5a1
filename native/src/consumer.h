/*
 * The worker's hot loop: takes records out of the command ring, has the engine execute them, answers with completions.
 *
 * It runs without Python's lock and comes back only for what Python decides: a control record, or an end. See ring.h for the
 * protocol; everything read from the ring is copied and checked first, although the other side is the trusted one, because a
 * worker that misreads its ring must stop and not guess.
 *
 * Threads: iso_consumer_run(), _finish() and _drain() belong to one thread. Completions come from that thread and from the
 * engine's fence thread; one mutex orders them.
 */
#ifndef ISOREND_CONSUMER_H
#define ISOREND_CONSUMER_H

#include "engine.h"

enum iso_wake {
    ISO_WAKE_CONTROL = 1, /* a control record: read payload, then iso_consumer_finish() */
    ISO_WAKE_HANGUP = 2,  /* the channel's other end is closed: the master is gone */
    ISO_WAKE_BROKEN = 3,  /* the ring holds what it never may; text says what */
    ISO_WAKE_FAULT = 4,   /* the engine reported an error; text says what; at most once a second */
};

struct iso_wake_event {
    uint32_t reason;
    uint32_t flags;
    uint64_t seq;
    uint32_t ring_idx, ctx_id;
    uint32_t payload_len;
    const uint8_t *payload; /* in the ring; valid until iso_consumer_finish() */
    uint64_t faults;        /* with ISO_WAKE_FAULT: reported since the last such event */
    char text[ISO_FAULT_TEXT];
};

struct iso_consumer_statistics {
    uint64_t records, submits, transfers, copies, fences, completions, sleeps, doorbells;
};

struct iso_consumer;

/*
 * Map the ring and the staging memory and take over fence_done of the engine. The descriptors stay the caller's and must
 * outlive the consumer. NULL with errno: EPROTO (not a ring of this version, or memory that is not sealed), or from mmap.
 */
struct iso_consumer *iso_consumer_new(int ring_fd, int staging_fd, int worker_doorbell, int master_doorbell, int channel_fd,
                                      struct iso_engine *engine);

/* The engine must not complete a fence any more. */
void iso_consumer_free(struct iso_consumer *consumer);

/* Consume until there is something for Python; fills event and returns its reason. Not to be called with a record open. */
uint32_t iso_consumer_run(struct iso_consumer *consumer, struct iso_wake_event *event);

/* Answer the open control record as its flags ask, and step past it. -1 if none is open. */
int iso_consumer_finish(struct iso_consumer *consumer, uint32_t status);

/* Wait until every fence created so far is completed: 0, or -1 after timeout_ms or when the master is gone. */
int iso_consumer_drain(struct iso_consumer *consumer, int timeout_ms);

/* Address of a range of the staging memory, NULL if it is not within. */
uint8_t *iso_consumer_staging(struct iso_consumer *consumer, uint64_t offset, uint64_t len);

void iso_consumer_statistics(struct iso_consumer *consumer, struct iso_consumer_statistics *statistics);

#endif
