/*
 * An engine that draws nothing, for tests and benches: every operation is done at once, on resources that are bytes
 * (null_objects.h), and fences are completed by a thread of their own (null_fences.h). A SUBMIT is a stream of commands of
 * 32-bit words, an opcode and its arguments; it ends where it ends, at ISO_NULL_NOP, or at what is no opcode.
 */
#ifndef ISOREND_NULL_ENGINE_H
#define ISOREND_NULL_ENGINE_H

#include "engine.h"
#include "null_objects.h"

enum iso_null_opcode {
    ISO_NULL_NOP = 0,
    ISO_NULL_BUSY = 1,  /* milliseconds: keep the processor busy */
    ISO_NULL_ABORT = 2, /* abort() */
    ISO_NULL_HANG = 3,  /* never return */
    ISO_NULL_FAIL = 4,  /* ISO_STATUS_FAILED, and a fault */
    ISO_NULL_DELAY = 5, /* milliseconds: of the next fence, on whatever ring_idx */
    /* Offsets and lengths are in bytes of an object's contents. */
    ISO_NULL_FILL = 6,  /* resource, offset, length, byte */
    ISO_NULL_COPY = 7,  /* resource, other resource: all contents of the first to the second */
    ISO_NULL_CHECK = 8, /* resource, offset, length, byte: fails as ISO_NULL_FAIL does if one of them is another */
    ISO_NULL_BLOB = 9,  /* blob id, size: an object of the context's, a buffer, for CreateBlob to find */
};

/* NULL with errno when memory or the thread cannot be had. */
struct iso_engine *iso_null_engine_new(void);

struct iso_null_objects *iso_null_engine_objects(struct iso_engine *engine);

/* The size of a context's object that ISO_NULL_BLOB made and nobody has asked for yet; 0: there is none. */
uint32_t iso_null_engine_take_blob(struct iso_engine *engine, uint32_t ctx_id, uint64_t blob_id);

/* The context is destroyed. */
void iso_null_engine_forget_context(struct iso_engine *engine, uint32_t ctx_id);

/* What ISO_NULL_DELAY said of the next fence, in milliseconds, for who makes it elsewhere. */
uint32_t iso_null_take_delay(struct iso_engine *engine);

/* Completes what is pending. */
void iso_null_engine_free(struct iso_engine *engine);

#endif
