#include "null_engine.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "null_fences.h"
#include "null_vtest.h"

enum { MAX_BLOBS = 4096, MAX_ARGUMENTS = 4 };

struct null_blob {
    uint32_t ctx_id, blob_id, bytes;
    struct null_blob *next;
};

struct null_engine {
    struct iso_engine base;
    struct iso_null_fences *fences;
    struct iso_null_objects *objects;
    struct null_blob *blobs;
    uint32_t blob_count;
    uint32_t next_delay_ms;
};

static struct null_engine *of(struct iso_engine *engine)
{
    return (struct null_engine *)engine;
}

/* Blobs. */

static struct null_blob **find_blob(struct null_engine *null, uint32_t ctx_id, uint64_t blob_id)
{
    struct null_blob **link = &null->blobs;

    while (*link && ((*link)->ctx_id != ctx_id || (*link)->blob_id != blob_id))
        link = &(*link)->next;
    return link;
}

static void drop_blob(struct null_engine *null, struct null_blob **link)
{
    struct null_blob *blob = *link;

    *link = blob->next;
    free(blob);
    null->blob_count--;
}

static uint32_t make_blob(struct null_engine *null, uint32_t ctx_id, uint32_t blob_id, uint32_t bytes)
{
    struct null_blob *blob;

    if (!bytes || *find_blob(null, ctx_id, blob_id))
        return ISO_STATUS_INVALID_PARAMETER;
    if (null->blob_count == MAX_BLOBS || !(blob = malloc(sizeof(*blob))))
        return ISO_STATUS_OUT_OF_MEMORY;
    *blob = (struct null_blob){.ctx_id = ctx_id, .blob_id = blob_id, .bytes = bytes, .next = null->blobs};
    null->blobs = blob;
    null->blob_count++;
    return ISO_STATUS_OK;
}

uint32_t iso_null_engine_take_blob(struct iso_engine *engine, uint32_t ctx_id, uint64_t blob_id)
{
    struct null_blob **link = find_blob(of(engine), ctx_id, blob_id);
    uint32_t bytes = *link ? (*link)->bytes : 0;

    if (*link)
        drop_blob(of(engine), link);
    return bytes;
}

void iso_null_engine_forget_context(struct iso_engine *engine, uint32_t ctx_id)
{
    struct null_blob **link = &of(engine)->blobs;

    while (*link)
        if ((*link)->ctx_id == ctx_id)
            drop_blob(of(engine), link);
        else
            link = &(*link)->next;
}

/* Streams. */

static void burn_ms(uint32_t milliseconds)
{
    struct timespec now, start;

    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 < (long)milliseconds);
}

static uint32_t check(struct iso_engine *engine, const uint32_t *words)
{
    uint64_t found;
    uint32_t status =
        iso_null_object_check(of(engine)->objects, words[0], words[1], words[2], (uint8_t)words[3], &found);

    if (status == ISO_STATUS_FAILED)
        iso_engine_fault(engine, "byte %llu of resource %u is not %u", (unsigned long long)found, words[0], words[3]);
    return status;
}

static uint32_t execute(struct iso_engine *engine, uint32_t ctx_id, uint32_t opcode, const uint32_t *words)
{
    struct iso_null_objects *objects = of(engine)->objects;

    switch (opcode) {
    case ISO_NULL_BUSY:
        burn_ms(words[0]);
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
        of(engine)->next_delay_ms = words[0];
        return ISO_STATUS_OK;
    case ISO_NULL_FILL:
        return iso_null_object_fill(objects, words[0], words[1], words[2], (uint8_t)words[3]);
    case ISO_NULL_COPY:
        return iso_null_object_copy(objects, words[0], words[1]);
    case ISO_NULL_CHECK:
        return check(engine, words);
    default:
        return make_blob(of(engine), ctx_id, words[0], words[1]);
    }
}

static uint32_t null_submit(struct iso_engine *engine, uint32_t ctx_id, const void *payload, uint32_t len)
{
    static const uint32_t arguments[] = {
        [ISO_NULL_BUSY] = 1, [ISO_NULL_ABORT] = 0, [ISO_NULL_HANG] = 0, [ISO_NULL_FAIL] = 0,  [ISO_NULL_DELAY] = 1,
        [ISO_NULL_FILL] = 4, [ISO_NULL_COPY] = 2,  [ISO_NULL_CHECK] = 4, [ISO_NULL_BLOB] = 2,
    };
    const uint8_t *at = payload;
    uint32_t status = ISO_STATUS_OK, opcode;

    for (; status == ISO_STATUS_OK && len >= sizeof(opcode);) {
        uint32_t words[MAX_ARGUMENTS] = {0};
        memcpy(&opcode, at, sizeof(opcode));
        if (opcode == ISO_NULL_NOP || opcode >= sizeof(arguments) / sizeof(arguments[0]))
            break;
        uint32_t bytes = 4 * arguments[opcode];
        if (len - sizeof(opcode) < bytes)
            return ISO_STATUS_INVALID_PARAMETER;
        memcpy(words, at + sizeof(opcode), bytes);
        status = execute(engine, ctx_id, opcode, words);
        at += sizeof(opcode) + bytes;
        len -= (uint32_t)sizeof(opcode) + bytes;
    }
    return status;
}

/* The other records. */

static uint32_t null_transfer_write(struct iso_engine *engine, uint32_t ctx_id, const struct iso_transfer *transfer,
                                    uint8_t *staging)
{
    (void)ctx_id;
    return iso_null_object_transfer(of(engine)->objects, transfer, staging, true);
}

static uint32_t null_transfer_read(struct iso_engine *engine, uint32_t ctx_id, const struct iso_transfer *transfer,
                                   uint8_t *staging)
{
    (void)ctx_id;
    return iso_null_object_transfer(of(engine)->objects, transfer, staging, false);
}

static uint32_t null_copy_out(struct iso_engine *engine, uint32_t ctx_id, uint32_t resource_id)
{
    (void)ctx_id;
    return iso_null_object_copy_out(of(engine)->objects, resource_id);
}

static uint32_t null_copy_in(struct iso_engine *engine, uint32_t ctx_id, uint32_t resource_id)
{
    (void)ctx_id;
    return iso_null_object_copy_in(of(engine)->objects, resource_id);
}

uint32_t iso_null_take_delay(struct iso_engine *engine)
{
    uint32_t delay_ms = of(engine)->next_delay_ms;

    of(engine)->next_delay_ms = 0;
    return delay_ms;
}

static uint32_t null_create_fence(struct iso_engine *engine, uint32_t ctx_id, uint32_t ring_idx, uint64_t seq,
                                  uint64_t patience_ns)
{
    struct null_engine *null = of(engine);
    uint32_t delay_ms = iso_null_take_delay(engine);

    if (patience_ns && !delay_ms && iso_null_fences_idle(null->fences)) {
        engine->fence_done(engine->cookie, seq);
        return ISO_STATUS_OK;
    }
    return iso_null_fences_add(null->fences, ctx_id, ring_idx, seq, delay_ms) ? ISO_STATUS_OK : ISO_STATUS_OUT_OF_MEMORY;
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

static const struct iso_engine_ops null_ops = {
    .name = "null",
    .submit = null_submit,
    .transfer_write = null_transfer_write,
    .transfer_read = null_transfer_read,
    .copy_out = null_copy_out,
    .copy_in = null_copy_in,
    .create_fence = null_create_fence,
    .poll = null_poll,
    .poll_fd = null_poll_fd,
    .vtest = &iso_null_vtest_ops,
};

/* Its life. */

struct iso_null_objects *iso_null_engine_objects(struct iso_engine *engine)
{
    return of(engine)->objects;
}

struct iso_engine *iso_null_engine_new(void)
{
    struct null_engine *null = calloc(1, sizeof(*null));

    if (!null)
        return NULL;
    null->base.ops = &null_ops;
    null->objects = iso_null_objects_new();
    null->fences = null->objects ? iso_null_fences_new(&null->base) : NULL;
    if (null->fences)
        return &null->base;
    int error = errno;
    iso_null_objects_free(null->objects);
    free(null);
    errno = error;
    return NULL;
}

void iso_null_engine_free(struct iso_engine *engine)
{
    struct null_engine *null = of(engine);

    if (!null)
        return;
    iso_null_fences_free(null->fences);
    iso_null_objects_free(null->objects);
    while (null->blobs)
        drop_blob(null, &null->blobs);
    free(null);
}
