/*
 * The rings between the master and one worker: what both sides must agree on.
 *
 * Theory of operation
 *
 * One sealed memfd per worker holds this header, a byte ring of command records (master -> worker) and a ring of fixed-size
 * completions (worker -> master). A second memfd is the staging memory that transfers go through. Two doorbells are rung
 * only when the other side said that it sleeps: towards the master an eventfd, which the master never reads, and towards
 * the worker a pipe, of which the worker has the reading end alone. So the master never reads or writes an open file that
 * a worker could have made blocking.
 *
 * Every record has a sequence number, given by the master, ascending by one. A record is answered by at most one completion
 * that carries the number back: at once when it has been executed (ISO_FLAG_COMPLETE), when the work it started has been
 * finished by the driver (ISO_FLAG_FENCE), or never (no flag).
 *
 * Neither side trusts what it reads here twice: each keeps its own index privately and only publishes it; the other side's
 * index is read once and checked. The worker is the one that may be hostile (it runs what a guest sent), so the master
 * copies a completion before looking at it and treats an impossible index as the end of that worker.
 *
 * Sleeping: the consumer sets its `sleeping` word, looks at the ring once more, then sleeps on its doorbell. The producer
 * publishes its index, then looks at the word: if set it clears it and rings. Both steps are sequentially consistent, so one
 * of the two always sees the other. `want_room` is the same, for a master whose command ring or staging was full.
 */
#ifndef ISOREND_RING_H
#define ISOREND_RING_H

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#define ISO_RING_MAGIC 0x69736f72u /* "isor" */
#define ISO_RING_VERSION 2u
#define ISO_RING_CMD_BYTES (2u << 20)
#define ISO_RING_CPL_ENTRIES 4096u
#define ISO_RING_RECORD_ALIGN 32u
#define ISO_RING_MAX_RECORD (ISO_RING_CMD_BYTES / 2)
#define ISO_RING_MAX_PAYLOAD (ISO_RING_MAX_RECORD - (uint32_t)sizeof(struct iso_record))

enum iso_record_type {
    ISO_RECORD_PAD = 0,            /* skip to the start of the ring */
    ISO_RECORD_SUBMIT = 1,         /* payload: the guest's command stream, as it came */
    ISO_RECORD_TRANSFER_WRITE = 2, /* payload: struct iso_transfer; staging -> resource */
    ISO_RECORD_TRANSFER_READ = 3,  /* payload: struct iso_transfer; resource -> staging */
    ISO_RECORD_FENCE = 4,          /* no payload: a fence behind everything before it */
    ISO_RECORD_COPY_OUT = 5,       /* payload: struct iso_copy; object -> mirror (mirror.h), if it was written since */
    ISO_RECORD_COPY_IN = 6,        /* payload: struct iso_copy; mirror -> object, if it has changed since */
    ISO_RECORD_CONTROL = 16,       /* payload: one message of ipc.messages; decided in Python */
};

enum iso_record_flags {
    ISO_FLAG_COMPLETE = 1, /* complete when executed */
    ISO_FLAG_FENCE = 2,    /* complete when the driver has finished it and all before it on this ring_idx */
};

/* How a record ended. A worker may send anything else; the master takes that for ISO_STATUS_FAILED. */
enum iso_status {
    ISO_STATUS_OK = 0,
    ISO_STATUS_FAILED = 1,           /* the engine refused it */
    ISO_STATUS_INVALID_PARAMETER = 2,
    ISO_STATUS_INVALID_RESOURCE = 3,
    ISO_STATUS_OUT_OF_MEMORY = 4,
    ISO_STATUS_LOST = 5,             /* made by the master alone: the worker died before it answered */
};

struct iso_record {
    uint32_t size; /* of the whole record, this header included; a multiple of ISO_RING_RECORD_ALIGN */
    uint32_t type;
    uint64_t seq;
    uint32_t flags;
    uint32_t ring_idx;
    uint32_t payload_len; /* bytes that follow, without padding */
    uint32_t ctx_id;      /* the guest context it is of */
};

/* A transfer between a resource's box and staging memory, where the rows of the box lie packed. */
struct iso_transfer {
    uint32_t resource_id;
    uint32_t level;
    uint32_t x, y, z, w, h, d;
    uint32_t stride;       /* bytes from row to row in staging */
    uint32_t layer_stride; /* bytes from layer to layer in staging */
    uint64_t offset;       /* of the first byte, in staging memory */
    uint64_t len;          /* bytes used in staging memory */
};

/* A copy between a resource's object and its mirror. */
struct iso_copy {
    uint32_t resource_id, pad;
};

struct iso_completion {
    uint64_t seq;
    uint32_t status;
    uint32_t pad;
};

#define ISO_LINE _Alignas(64)

struct iso_ring_header {
    uint32_t magic, version, cmd_bytes, cpl_entries;
    ISO_LINE _Atomic uint64_t cmd_head; /* bytes produced since the start; the master writes */
    ISO_LINE _Atomic uint64_t cmd_tail; /* bytes consumed since the start; the worker writes */
    ISO_LINE _Atomic uint32_t worker_sleeping;
    ISO_LINE _Atomic uint64_t cpl_head; /* completions produced since the start; the worker writes */
    ISO_LINE _Atomic uint64_t cpl_tail; /* completions consumed since the start; the master writes */
    ISO_LINE _Atomic uint32_t master_sleeping;
    ISO_LINE _Atomic uint32_t want_room; /* the master waits for the worker to consume */
    ISO_LINE _Atomic uint64_t begun;     /* sequence number of the record the worker is at; for blame and hang detection */
};

#define ISO_RING_CMD_OFFSET 4096u
#define ISO_RING_CPL_OFFSET (ISO_RING_CMD_OFFSET + ISO_RING_CMD_BYTES)
#define ISO_RING_TOTAL_BYTES (ISO_RING_CPL_OFFSET + ISO_RING_CPL_ENTRIES * (uint32_t)sizeof(struct iso_completion))

_Static_assert(sizeof(struct iso_record) == 32, "record header fills one alignment unit, so it never wraps");
_Static_assert(sizeof(struct iso_completion) == 16, "completion layout");
_Static_assert(sizeof(struct iso_transfer) == 56, "transfer layout");
_Static_assert(sizeof(struct iso_ring_header) <= ISO_RING_CMD_OFFSET, "header fits its page");
_Static_assert((ISO_RING_CMD_BYTES & (ISO_RING_CMD_BYTES - 1)) == 0, "power of two");

static inline uint8_t *iso_ring_cmd_base(struct iso_ring_header *ring)
{
    return (uint8_t *)ring + ISO_RING_CMD_OFFSET;
}

static inline struct iso_completion *iso_ring_cpl_base(struct iso_ring_header *ring)
{
    return (struct iso_completion *)((uint8_t *)ring + ISO_RING_CPL_OFFSET);
}

static inline uint32_t iso_ring_record_size(uint32_t payload_len)
{
    return (uint32_t)((sizeof(struct iso_record) + payload_len + ISO_RING_RECORD_ALIGN - 1) & ~(ISO_RING_RECORD_ALIGN - 1));
}

#endif
