#include "null_fences.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#define MAX_FENCES 8192u /* more than the completion ring holds */

struct fence {
    uint64_t seq, due_ns; /* 0: at once */
    struct fence *next;
};

/* What is pending on one ring_idx of a context, in order; without any it does not exist. */
struct timeline {
    uint32_t ctx_id, ring_idx;
    struct fence *first, *last;
    struct timeline *next;
};

struct iso_null_fences {
    struct iso_engine *engine;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct timeline *timelines; /* the rest: under lock */
    uint32_t under_way; /* fences not done */
    bool ending;
};

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static struct timeline *timeline_of(struct iso_null_fences *fences, uint32_t ctx_id, uint32_t ring_idx)
{
    struct timeline *timeline = fences->timelines;

    while (timeline && (timeline->ctx_id != ctx_id || timeline->ring_idx != ring_idx))
        timeline = timeline->next;
    if (!timeline && (timeline = calloc(1, sizeof(*timeline)))) {
        *timeline = (struct timeline){.ctx_id = ctx_id, .ring_idx = ring_idx, .next = fences->timelines};
        fences->timelines = timeline;
    }
    return timeline;
}

static void append(struct timeline *timeline, struct fence *fence, uint32_t delay_ms)
{
    uint64_t due_ns = timeline->last ? timeline->last->due_ns : 0;

    if (delay_ms) {
        uint64_t now = now_ns();
        due_ns = (due_ns > now ? due_ns : now) + delay_ms * UINT64_C(1000000);
    }
    fence->due_ns = due_ns;
    if (timeline->last)
        timeline->last->next = fence;
    else
        timeline->first = fence;
    timeline->last = fence;
}

bool iso_null_fences_add(struct iso_null_fences *fences, uint32_t ctx_id, uint32_t ring_idx, uint64_t seq, uint32_t delay_ms)
{
    struct fence *fence = calloc(1, sizeof(*fence));
    struct timeline *timeline = NULL;

    if (!fence)
        return false;
    fence->seq = seq;
    pthread_mutex_lock(&fences->lock);
    if (fences->under_way < MAX_FENCES && (timeline = timeline_of(fences, ctx_id, ring_idx))) {
        append(timeline, fence, delay_ms);
        fences->under_way++;
        pthread_cond_signal(&fences->changed);
    }
    pthread_mutex_unlock(&fences->lock);
    if (!timeline)
        free(fence);
    return timeline;
}

bool iso_null_fences_idle(struct iso_null_fences *fences)
{
    pthread_mutex_lock(&fences->lock);
    bool idle = !fences->under_way;
    pthread_mutex_unlock(&fences->lock);
    return idle;
}

/* The link to the timeline whose first fence is due before all others; to NULL if nothing is pending. */
static struct timeline **soonest(struct iso_null_fences *fences)
{
    struct timeline **found = &fences->timelines;

    for (struct timeline **at = &fences->timelines; *at; at = &(*at)->next)
        if ((*at)->first->due_ns < (*found)->first->due_ns)
            found = at;
    return found;
}

static struct fence *take(struct timeline **link)
{
    struct timeline *timeline = *link;
    struct fence *fence = timeline->first;

    timeline->first = fence->next;
    if (!timeline->first) {
        *link = timeline->next;
        free(timeline);
    }
    return fence;
}

static void wait_until(struct iso_null_fences *fences, uint64_t due_ns)
{
    const struct timespec due = {.tv_sec = (time_t)(due_ns / 1000000000u), .tv_nsec = (long)(due_ns % 1000000000u)};

    pthread_cond_timedwait(&fences->changed, &fences->lock, &due);
}

static void *complete(void *cookie)
{
    struct iso_null_fences *fences = cookie;

    pthread_mutex_lock(&fences->lock);
    for (;;) {
        struct timeline **next = soonest(fences);
        if (!*next && fences->ending)
            break;
        if (!*next) {
            pthread_cond_wait(&fences->changed, &fences->lock);
            continue;
        }
        uint64_t due_ns = (*next)->first->due_ns;
        if (due_ns && !fences->ending && due_ns > now_ns()) {
            wait_until(fences, due_ns);
            continue;
        }
        struct fence *fence = take(next);
        pthread_mutex_unlock(&fences->lock);
        fences->engine->fence_done(fences->engine->cookie, fence->seq);
        free(fence);
        pthread_mutex_lock(&fences->lock);
        fences->under_way--;
    }
    pthread_mutex_unlock(&fences->lock);
    return NULL;
}

static void init_condition(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

struct iso_null_fences *iso_null_fences_new(struct iso_engine *engine)
{
    struct iso_null_fences *fences = calloc(1, sizeof(*fences));
    int error;

    if (!fences)
        return NULL;
    fences->engine = engine;
    pthread_mutex_init(&fences->lock, NULL);
    init_condition(&fences->changed);
    error = pthread_create(&fences->thread, NULL, complete, fences);
    if (error) {
        free(fences);
        errno = error;
        return NULL;
    }
    return fences;
}

void iso_null_fences_free(struct iso_null_fences *fences)
{
    if (!fences)
        return;
    pthread_mutex_lock(&fences->lock);
    fences->ending = true;
    pthread_cond_signal(&fences->changed);
    pthread_mutex_unlock(&fences->lock);
    pthread_join(fences->thread, NULL);
    pthread_cond_destroy(&fences->changed);
    pthread_mutex_destroy(&fences->lock);
    free(fences);
}
