/*
 * An engine that draws nothing, for tests and benches: every operation succeeds at once, fences are completed by a thread of
 * their own, as a driver does. The first 32-bit words of a SUBMIT are {opcode, argument}.
 */
#ifndef ISOREND_NULL_ENGINE_H
#define ISOREND_NULL_ENGINE_H

#include "engine.h"

enum iso_null_opcode {
    ISO_NULL_NOP = 0,
    ISO_NULL_BUSY = 1,  /* keep the processor busy for argument milliseconds */
    ISO_NULL_ABORT = 2, /* abort() */
    ISO_NULL_HANG = 3,  /* never return */
    ISO_NULL_FAIL = 4,  /* ISO_STATUS_FAILED, and a fault */
    ISO_NULL_DELAY = 5, /* the next fence takes argument milliseconds */
};

/* NULL with errno when memory or the thread cannot be had. */
struct iso_engine *iso_null_engine_new(void);

/* What ISO_NULL_DELAY said of the next fence, in milliseconds, for who makes it elsewhere. */
uint32_t iso_null_take_delay(struct iso_engine *engine);

/* Completes what is pending, ends the thread. */
void iso_null_engine_free(struct iso_engine *engine);

#endif
