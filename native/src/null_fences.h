/*
 * Fences of the null engine, completed by a thread of their own, as a driver does. Each ring_idx of a context is a timeline by
 * itself: a fence that takes long holds up those behind it there and no others.
 */
#ifndef ISOREND_NULL_FENCES_H
#define ISOREND_NULL_FENCES_H

#include "engine.h"

struct iso_null_fences;

/* Their ends are told to fence_done of `engine`. NULL with errno when memory or the thread cannot be had. */
struct iso_null_fences *iso_null_fences_new(struct iso_engine *engine);

/* Completes what is pending, without its delay, and ends the thread. */
void iso_null_fences_free(struct iso_null_fences *fences);

/* Whether all are completed. */
bool iso_null_fences_idle(struct iso_null_fences *fences);

/* A fence that completes delay_ms after the one before it on its timeline. False if there are too many. */
bool iso_null_fences_add(struct iso_null_fences *fences, uint32_t ctx_id, uint32_t ring_idx, uint64_t seq, uint32_t delay_ms);

#endif
