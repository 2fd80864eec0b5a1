#include "null_engine.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "null_vtest.h"

#define MAX_FENCES 8192u /* more than the completion ring holds */

struct null_fence {
    uint64_t seq;
    uint32_t delay_ms;
};

struct null_engine {
    struct iso_engine base;
    uint32_t next_delay_ms;
    uint32_t under_way; /* fences not done */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct null_fence fences[MAX_FENCES];
    uint64_t head, tail;
    bool ending;
};

static struct null_engine *of(struct iso_engine *engine)
{
    return (struct null_engine *)engine;
}

static void sleep_ms(uint32_t milliseconds)
{
    struct timespec left = {.tv_sec = milliseconds / 1000, .tv_nsec = (long)(milliseconds % 1000) * 1000000};

    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}

static void burn_ms(uint32_t milliseconds)
{
    struct timespec now, start;

    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 < (long)milliseconds);
}

static uint32_t null_submit(struct iso_engine *engine, uint32_t ctx_id, const void *payload, uint32_t len)
{
    uint32_t words[2] = {ISO_NULL_NOP, 0};

    (void)ctx_id;
    memcpy(words, payload, len < sizeof(words) ? len : sizeof(words));
    switch (words[0]) {
    case ISO_NULL_BUSY:
        burn_ms(words[1]);
        return ISO_STATUS_OK;
    case ISO_NULL_ABORT:
        abort();
    case ISO_NULL_HANG:
        for (;;)
            pause();
    case ISO_NULL_FAIL:
        iso_engine_fault(engine, "told to fail");
        return ISO_STATUS_FAILED;
    case ISO_NULL_DELAY:
        of(engine)->next_delay_ms = words[1];
        return ISO_STATUS_OK;
    default:
        return ISO_STATUS_OK;
    }
}

static uint32_t null_transfer(struct iso_engine *engine, uint32_t ctx_id, const struct iso_transfer *transfer, uint8_t *staging)
{
    (void)engine;
    (void)ctx_id;
    (void)transfer;
    (void)staging;
    return ISO_STATUS_OK;
}

static uint32_t null_create_fence(struct iso_engine *engine, uint32_t ctx_id, uint32_t ring_idx, uint64_t seq,
                                  uint64_t patience_ns)
{
    struct null_engine *null = of(engine);
    bool full;

    (void)ctx_id;
    (void)ring_idx;
    pthread_mutex_lock(&null->lock);
    if (patience_ns && !null->under_way && !null->next_delay_ms) {
        pthread_mutex_unlock(&null->lock);
        engine->fence_done(engine->cookie, seq);
        return ISO_STATUS_OK;
    }
    full = null->head - null->tail == MAX_FENCES;
    if (!full) {
        null->fences[null->head++ % MAX_FENCES] = (struct null_fence){.seq = seq, .delay_ms = null->next_delay_ms};
        null->next_delay_ms = 0;
        null->under_way++;
        pthread_cond_signal(&null->changed);
    }
    pthread_mutex_unlock(&null->lock);
    return full ? ISO_STATUS_OUT_OF_MEMORY : ISO_STATUS_OK;
}

uint32_t iso_null_take_delay(struct iso_engine *engine)
{
    uint32_t delay_ms = of(engine)->next_delay_ms;

    of(engine)->next_delay_ms = 0;
    return delay_ms;
}

static void null_poll(struct iso_engine *engine)
{
    (void)engine;
}

static int null_poll_fd(struct iso_engine *engine)
{
    (void)engine;
    return -1;
}

static void *complete_fences(void *cookie)
{
    struct null_engine *null = cookie;

    pthread_mutex_lock(&null->lock);
    for (;;) {
        while (null->head == null->tail && !null->ending)
            pthread_cond_wait(&null->changed, &null->lock);
        if (null->head == null->tail)
            break;
        struct null_fence fence = null->fences[null->tail++ % MAX_FENCES];
        pthread_mutex_unlock(&null->lock);
        if (fence.delay_ms)
            sleep_ms(fence.delay_ms);
        null->base.fence_done(null->base.cookie, fence.seq);
        pthread_mutex_lock(&null->lock);
        null->under_way--;
    }
    pthread_mutex_unlock(&null->lock);
    return NULL;
}

static const struct iso_engine_ops null_ops = {
    .name = "null",
    .submit = null_submit,
    .transfer_write = null_transfer,
    .transfer_read = null_transfer,
    .create_fence = null_create_fence,
    .poll = null_poll,
    .poll_fd = null_poll_fd,
    .vtest = &iso_null_vtest_ops,
};

struct iso_engine *iso_null_engine_new(void)
{
    struct null_engine *null = calloc(1, sizeof(*null));
    int error;

    if (!null)
        return NULL;
    null->base.ops = &null_ops;
    pthread_mutex_init(&null->lock, NULL);
    pthread_cond_init(&null->changed, NULL);
    error = pthread_create(&null->thread, NULL, complete_fences, null);
    if (error) {
        free(null);
        errno = error;
        return NULL;
    }
    return &null->base;
}

void iso_null_engine_free(struct iso_engine *engine)
{
    struct null_engine *null = of(engine);

    if (!null)
        return;
    pthread_mutex_lock(&null->lock);
    null->ending = true;
    pthread_cond_signal(&null->changed);
    pthread_mutex_unlock(&null->lock);
    pthread_join(null->thread, NULL);
    pthread_cond_destroy(&null->changed);
    pthread_mutex_destroy(&null->lock);
    free(null);
}
