/*
 * What the consumer asks of an engine.
 *
 * All operations but fence_done run on the consumer's thread. An operation returns an iso_status; it may leave one line about
 * what went wrong with iso_engine_fault(), which the consumer hands to Python once and then forgets.
 *
 * create_fence() promises one later call of fence_done(cookie, seq), from any thread, also from within create_fence() itself;
 * those of one ctx_id and ring_idx come in the order in which they were created. If it returns anything but ISO_STATUS_OK
 * there will be no such call. It may block for patience_ns, for which the consumer has nothing else to do.
 *
 * An engine which needs its poll() called says when by poll_fd(): a descriptor that turns readable and stays the same, or -1
 * for "while fences are pending, every millisecond".
 */
#ifndef ISOREND_ENGINE_H
#define ISOREND_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ring.h"

#define ISO_FAULT_TEXT 256

struct iso_engine;
struct iso_vtest_ops;

struct iso_engine_ops {
    const char *name;
    uint32_t (*submit)(struct iso_engine *engine, uint32_t ctx_id, const void *payload, uint32_t len);
    uint32_t (*transfer_write)(struct iso_engine *engine, uint32_t ctx_id, const struct iso_transfer *transfer, uint8_t *staging);
    uint32_t (*transfer_read)(struct iso_engine *engine, uint32_t ctx_id, const struct iso_transfer *transfer, uint8_t *staging);
    /* Both answer ISO_STATUS_INVALID_RESOURCE for a resource without a mirror. */
    uint32_t (*copy_out)(struct iso_engine *engine, uint32_t ctx_id, uint32_t resource_id);
    uint32_t (*copy_in)(struct iso_engine *engine, uint32_t ctx_id, uint32_t resource_id);
    uint32_t (*create_fence)(struct iso_engine *engine, uint32_t ctx_id, uint32_t ring_idx, uint64_t seq, uint64_t patience_ns);
    void (*poll)(struct iso_engine *engine);
    int (*poll_fd)(struct iso_engine *engine);
    const struct iso_vtest_ops *vtest; /* NULL: such an engine serves no vtest session */
};

struct iso_engine {
    const struct iso_engine_ops *ops;
    void (*fence_done)(void *cookie, uint64_t seq); /* set by the consumer that drives this engine */
    void *cookie;
    uint64_t faults; /* ever reported, on the consumer's thread */
    char fault_text[ISO_FAULT_TEXT];
};

/* Remember what went wrong; called on the consumer's thread, by the engine. */
void iso_engine_fault(struct iso_engine *engine, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
