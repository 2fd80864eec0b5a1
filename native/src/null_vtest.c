#include "null_vtest.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "null_engine.h"

enum { CAPS_V1_BYTES = 308, CAPS_V2_BYTES = 1376 }; /* struct virgl_caps_v1 and the shortest virgl_caps_v2, virgl_hw.h */

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static const void *null_capset(struct iso_engine *self, uint32_t id, uint32_t *version, uint32_t *size)
{
    static const uint32_t zeros[CAPS_V2_BYTES / 4];

    (void)self;
    *version = id;
    *size = id == 1 ? CAPS_V1_BYTES : CAPS_V2_BYTES;
    return id == 1 || id == 2 ? zeros : NULL;
}

static int null_context_create(struct iso_engine *self, uint32_t capset_id, const char *name)
{
    (void)self;
    (void)name;
    return capset_id <= 2 ? 0 : EINVAL;
}

static int null_resource_create(struct iso_engine *self, uint32_t id, const struct iso_vtest_texture *texture)
{
    (void)self;
    (void)id;
    return texture->width ? 0 : EINVAL;
}

static int null_resource_back(struct iso_engine *self, uint32_t id, struct iovec *iov)
{
    (void)self;
    (void)id;
    (void)iov;
    return 0;
}

static int null_blob_create(struct iso_engine *self, uint32_t id, const struct iso_vtest_blob *blob, struct iovec *iov, int *fd)
{
    (void)self;
    (void)id;
    (void)blob;
    (void)fd;
    return iov ? 0 : ENOTSUP;
}

static void null_resource_drop(struct iso_engine *self, uint32_t id)
{
    (void)self;
    (void)id;
}

static int null_transfer(struct iso_engine *self, const struct iso_vtest_transfer *transfer, struct iovec *iov)
{
    (void)self;
    (void)transfer;
    (void)iov;
    return 0;
}

static int null_submit(struct iso_engine *self, const void *stream, uint32_t words)
{
    return self->ops->submit(self, 0, stream, words * 4) == ISO_STATUS_OK ? 0 : EINVAL;
}

static void null_flush(struct iso_engine *self)
{
    (void)self;
}

/* A fence is the time at which it is passed. */
static void *null_fence(struct iso_engine *self)
{
    uint64_t *passed_ns = malloc(sizeof(*passed_ns));

    if (passed_ns)
        *passed_ns = now_ns() + iso_null_take_delay(self) * UINT64_C(1000000);
    return passed_ns;
}

static bool null_fence_wait(struct iso_engine *self, void *fence, uint32_t timeout_ms)
{
    uint64_t now = now_ns(), passed = *(uint64_t *)fence, until = now + timeout_ms * UINT64_C(1000000);

    (void)self;
    if (passed > now) {
        uint64_t left = (passed < until ? passed : until) - now;
        const struct timespec sleep = {.tv_sec = (time_t)(left / 1000000000u), .tv_nsec = (long)(left % 1000000000u)};
        nanosleep(&sleep, NULL);
    }
    return passed <= until;
}

static void null_fence_drop(struct iso_engine *self, void *fence)
{
    (void)self;
    free(fence);
}

const struct iso_vtest_ops iso_null_vtest_ops = {
    .capset = null_capset,
    .context_create = null_context_create,
    .resource_create = null_resource_create,
    .resource_back = null_resource_back,
    .blob_create = null_blob_create,
    .resource_drop = null_resource_drop,
    .transfer = null_transfer,
    .submit = null_submit,
    .flush = null_flush,
    .fence = null_fence,
    .fence_wait = null_fence_wait,
    .fence_drop = null_fence_drop,
};
