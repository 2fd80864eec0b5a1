/*
 * An engine that looks at every byte it is given and does what the input says about it: answers, fences that are done at once,
 * later or out of nowhere. It never sleeps and has no thread.
 */
#ifndef ISOREND_FUZZ_QUIET_ENGINE_H
#define ISOREND_FUZZ_QUIET_ENGINE_H

#include "engine.h"
#include "input.h"
#include "vtest_ops.h"

struct quiet_engine {
    struct iso_engine base;
    struct input *input;
    uint64_t fences[64]; /* not done */
    uint32_t fence_count;
    uint32_t objects;    /* of fences made for vtest, not dropped */
    void (*between)(struct quiet_engine *engine); /* called whenever the consumer looks around; may be NULL */
    void *cookie;
};

void quiet_engine_init(struct quiet_engine *engine, struct input *input);
/* All fences that are left. */
void quiet_engine_settle(struct quiet_engine *engine);

#endif
