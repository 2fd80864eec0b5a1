#include "virgl_vtest.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "virgl_api.h"
#include "virgl_engine.h"
#include "virgl_gl_fence.h"

enum { CONTEXT_ID = 1 };

static int positive(int error)
{
    return abs(error);
}

static const void *vtest_capset(struct iso_engine *self, uint32_t id, uint32_t *version, uint32_t *size)
{
    (void)self;
    return iso_virgl_capset(id, version, size);
}

static int vtest_context_create(struct iso_engine *self, uint32_t capset_id, const char *name)
{
    (void)self;
    return iso_virgl_context_create(CONTEXT_ID, capset_id, name);
}

/* Resources. */

static int vtest_resource_create(struct iso_engine *self, uint32_t id, const struct iso_vtest_texture *texture)
{
    struct virgl_renderer_resource_create_args arguments = {
        .handle = id,
        .target = texture->target,
        .format = texture->format,
        .bind = texture->bind,
        .width = texture->width,
        .height = texture->height,
        .depth = texture->depth,
        .array_size = texture->array_size,
        .last_level = texture->last_level,
        .nr_samples = texture->nr_samples,
    };
    int error = positive(virgl_renderer_resource_create(&arguments, NULL, 0));

    (void)self;
    if (!error)
        virgl_renderer_ctx_attach_resource(CONTEXT_ID, (int)id);
    return error;
}

static int vtest_resource_back(struct iso_engine *self, uint32_t id, struct iovec *iov)
{
    (void)self;
    return positive(virgl_renderer_resource_attach_iov((int)id, iov, 1));
}

/* A client wants to map what it gets, so a descriptor that only another driver understands is of no use to it. */
static int export_blob(uint32_t id, int *fd)
{
    uint32_t type;
    int error = positive(virgl_renderer_resource_export_blob(id, &type, fd));

    if (!error && type != VIRGL_RENDERER_BLOB_FD_TYPE_DMABUF && type != VIRGL_RENDERER_BLOB_FD_TYPE_SHM) {
        close(*fd);
        error = ENOTSUP;
    }
    return error;
}

static int vtest_blob_create(struct iso_engine *self, uint32_t id, const struct iso_vtest_blob *blob, struct iovec *iov,
                             int *fd)
{
    const struct virgl_renderer_resource_create_blob_args arguments = {
        .res_handle = id,
        .ctx_id = CONTEXT_ID,
        .blob_mem = blob->memory,
        .blob_flags = blob->flags,
        .blob_id = blob->blob_id,
        .size = blob->size,
        .iovecs = iov,
        .num_iovs = iov ? 1 : 0,
    };
    int error = positive(virgl_renderer_resource_create_blob(&arguments));

    (void)self;
    if (!error && !iov) {
        error = export_blob(id, fd);
        if (error)
            virgl_renderer_resource_unref(id);
    }
    if (!error)
        virgl_renderer_ctx_attach_resource(CONTEXT_ID, (int)id);
    return error;
}

/* The iov goes first: an object of the context, a query for one, can keep the resource beyond its id, and would write there. */
static void vtest_resource_drop(struct iso_engine *self, uint32_t id)
{
    (void)self;
    virgl_renderer_resource_detach_iov((int)id, NULL, NULL);
    virgl_renderer_ctx_detach_resource(CONTEXT_ID, (int)id);
    virgl_renderer_resource_unref(id);
}

static int vtest_transfer(struct iso_engine *self, const struct iso_vtest_transfer *transfer, struct iovec *iov)
{
    const struct iso_vtest_box *at = &transfer->box;
    struct virgl_box box = {at->x, at->y, at->z, at->w, at->h, at->d};
    unsigned count = iov ? 1 : 0;
    int error;

    (void)self;
    if (transfer->write)
        error = virgl_renderer_transfer_write_iov(transfer->resource_id, CONTEXT_ID, (int)transfer->level, transfer->stride,
                                                  transfer->layer_stride, &box, transfer->offset, iov, count);
    else
        error = virgl_renderer_transfer_read_iov(transfer->resource_id, CONTEXT_ID, transfer->level, transfer->stride,
                                                 transfer->layer_stride, &box, transfer->offset, iov, (int)count);
    iso_virgl_report(transfer->write ? "transfer to a resource" : "transfer from a resource", error);
    return positive(error);
}

/* Work. */

static int vtest_submit(struct iso_engine *self, const void *stream, uint32_t words)
{
    switch (self->ops->submit(self, CONTEXT_ID, stream, words * 4)) {
    case ISO_STATUS_OK:
        return 0;
    case ISO_STATUS_OUT_OF_MEMORY:
        return ENOMEM;
    default:
        return EINVAL;
    }
}

static void vtest_flush(struct iso_engine *self)
{
    (void)self;
    iso_gl_flush();
}

static void *vtest_fence(struct iso_engine *self)
{
    (void)self;
    return iso_gl_fence();
}

static void mark_settled(void *cookie, uint64_t seq)
{
    (void)seq;
    *(bool *)cookie = true;
}

/*
 * virglrenderer looks after results that were not there when the stream asked for them, but only when a fence of its own is
 * retired. The work is done: such a fence is retired at once, or as soon as the driver notices.
 */
static void settle_queries(struct iso_engine *self)
{
    bool settled = false;

    self->fence_done = mark_settled;
    self->cookie = &settled;
    if (self->ops->create_fence(self, CONTEXT_ID, 0, 1, 0) == ISO_STATUS_OK)
        for (virgl_renderer_poll(); !settled; virgl_renderer_poll())
            sched_yield();
    self->cookie = NULL;
}

static bool vtest_fence_wait(struct iso_engine *self, void *fence, uint32_t timeout_ms)
{
    if (!iso_gl_fence_wait(fence, timeout_ms * UINT64_C(1000000)))
        return false;
    if (iso_virgl_queries_wait())
        settle_queries(self);
    return true;
}

static void vtest_fence_drop(struct iso_engine *self, void *fence)
{
    (void)self;
    iso_gl_fence_drop(fence);
}

const struct iso_vtest_ops iso_virgl_vtest_ops = {
    .capset = vtest_capset,
    .context_create = vtest_context_create,
    .resource_create = vtest_resource_create,
    .resource_back = vtest_resource_back,
    .blob_create = vtest_blob_create,
    .resource_drop = vtest_resource_drop,
    .transfer = vtest_transfer,
    .submit = vtest_submit,
    .flush = vtest_flush,
    .fence = vtest_fence,
    .fence_wait = vtest_fence_wait,
    .fence_drop = vtest_fence_drop,
};
