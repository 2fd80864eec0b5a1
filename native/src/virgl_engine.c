#include "virgl_engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "virgl_api.h"
#include "virgl_egl.h"
#include "virgl_log.h"
#include "virgl_vtest.h"

enum { CAPSET_VIRGL = 1, CAPSET_VIRGL2 = 2 };

static struct iso_engine engine;
static uint32_t context_id; /* 0: none */

/* Fences. */

static void write_context_fence(void *cookie, uint32_t ctx_id, uint32_t ring_idx, uint64_t fence_id)
{
    (void)cookie;
    (void)ctx_id;
    (void)ring_idx;
    engine.fence_done(engine.cookie, fence_id);
}

static void write_fence(void *cookie, uint32_t fence)
{
    (void)cookie;
    (void)fence; /* of context 0, for which no fence is ever created */
}

/* vrend has the one timeline: what a guest puts on several is kept in order on this one. */
static uint32_t virgl_create_fence(struct iso_engine *self, uint32_t ring_idx, uint64_t seq)
{
    (void)ring_idx;
    if (!context_id) {
        self->fence_done(self->cookie, seq); /* nothing can be under way */
        return ISO_STATUS_OK;
    }
    if (virgl_renderer_context_create_fence(context_id, 0, 0, seq) == 0)
        return ISO_STATUS_OK;
    iso_engine_fault(self, "no fence could be created");
    return ISO_STATUS_FAILED;
}

/* Work. */

static uint32_t status_of(int error)
{
    switch (abs(error)) {
    case 0:
        return ISO_STATUS_OK;
    case ENOMEM:
        return ISO_STATUS_OUT_OF_MEMORY;
    case EINVAL:
        return ISO_STATUS_INVALID_PARAMETER;
    default:
        return ISO_STATUS_FAILED;
    }
}

/* After an error that vrend blames on the context (one it logs as "context error reported") it skips all drawing of it. */
void iso_virgl_report(const char *what, int error)
{
    char text[ISO_FAULT_TEXT];

    if (iso_virgl_log_take_error(text, sizeof(text)))
        iso_engine_fault(&engine, "%.*s", ISO_FAULT_TEXT - 1, text);
    else if (error)
        iso_engine_fault(&engine, "%s: %s", what, strerror(abs(error)));
}

static uint32_t virgl_submit(struct iso_engine *self, const void *payload, uint32_t len)
{
    int error;

    (void)self;
    if (!context_id || len % 4)
        return ISO_STATUS_INVALID_PARAMETER;
    if (!len)
        return ISO_STATUS_OK;
    /* The payload is 32-byte aligned in the ring, and virglrenderer does not write to it. */
    error = virgl_renderer_submit_cmd((void *)(uintptr_t)payload, (int)context_id, (int)(len / 4));
    iso_virgl_report("submit", error);
    return status_of(error);
}

static uint32_t virgl_transfer(struct iso_engine *self, const struct iso_transfer *transfer, uint8_t *staging, bool write)
{
    struct virgl_box box = {transfer->x, transfer->y, transfer->z, transfer->w, transfer->h, transfer->d};
    struct iovec iov = {.iov_base = staging, .iov_len = (size_t)transfer->len};
    int error;

    (void)self;
    if (!context_id)
        return ISO_STATUS_INVALID_PARAMETER;
    if (write)
        error = virgl_renderer_transfer_write_iov(transfer->resource_id, context_id, (int)transfer->level, transfer->stride,
                                                  transfer->layer_stride, &box, 0, &iov, 1);
    else
        error = virgl_renderer_transfer_read_iov(transfer->resource_id, context_id, transfer->level, transfer->stride,
                                                 transfer->layer_stride, &box, 0, &iov, 1);
    iso_virgl_report(write ? "transfer to a resource" : "transfer from a resource", error);
    return status_of(error);
}

static uint32_t virgl_transfer_write(struct iso_engine *self, const struct iso_transfer *transfer, uint8_t *staging)
{
    return virgl_transfer(self, transfer, staging, true);
}

static uint32_t virgl_transfer_read(struct iso_engine *self, const struct iso_transfer *transfer, uint8_t *staging)
{
    return virgl_transfer(self, transfer, staging, false);
}

static void virgl_poll(struct iso_engine *self)
{
    (void)self;
    virgl_renderer_poll();
}

static int virgl_poll_fd(struct iso_engine *self)
{
    (void)self;
    return virgl_renderer_get_poll_fd();
}

static const struct iso_engine_ops virgl_ops = {
    .name = "virgl",
    .submit = virgl_submit,
    .transfer_write = virgl_transfer_write,
    .transfer_read = virgl_transfer_read,
    .create_fence = virgl_create_fence,
    .poll = virgl_poll,
    .poll_fd = virgl_poll_fd,
    .vtest = &iso_virgl_vtest_ops,
};

/* Start. */

struct iso_engine *iso_virgl_engine_init(void *egl_display, void *egl_config, bool gles, uint32_t use, char *error_text,
                                         size_t error_size)
{
    static struct virgl_renderer_callbacks callbacks = {
        .version = 4,
        .write_fence = write_fence,
        .create_gl_context = iso_virgl_egl_create_context,
        .destroy_gl_context = iso_virgl_egl_destroy_context,
        .make_current = iso_virgl_egl_make_current,
        .write_context_fence = write_context_fence,
        .get_egl_display = iso_virgl_egl_display,
    };
    /* A vtest client can only map memory that has a descriptor. */
    const int flags = use == ISO_VIRGL_FOR_VTEST ? VIRGL_RENDERER_USE_EXTERNAL_BLOB
                                                 : VIRGL_RENDERER_THREAD_SYNC | VIRGL_RENDERER_ASYNC_FENCE_CB;

    if (engine.ops) {
        snprintf(error_text, error_size, "virglrenderer was started before");
        errno = EBUSY;
        return NULL;
    }
    iso_virgl_log_install();
    iso_virgl_log_set_quiet(true);
    iso_virgl_egl_setup(egl_display, egl_config, gles);
    if (virgl_renderer_init(&engine, flags, &callbacks)) {
        if (!iso_virgl_log_take_error(error_text, error_size))
            snprintf(error_text, error_size, "virglrenderer does not start on this EGL display");
        errno = ENODEV;
        return NULL;
    }
    engine.ops = &virgl_ops;
    return &engine;
}

/* Asking is not free: virglrenderer looks at the driver, and logs. */
const void *iso_virgl_capset(uint32_t id, uint32_t *version, uint32_t *size)
{
    static struct {
        void *bytes;
        uint32_t version, size;
    } kept[CAPSET_VIRGL2 + 1];

    if (!engine.ops || (id != CAPSET_VIRGL && id != CAPSET_VIRGL2))
        return NULL;
    if (!kept[id].bytes) {
        virgl_renderer_get_cap_set(id, &kept[id].version, &kept[id].size);
        if (!kept[id].size || !(kept[id].bytes = calloc(1, kept[id].size)))
            return NULL;
        virgl_renderer_fill_caps(id, kept[id].version, kept[id].bytes);
    }
    *version = kept[id].version;
    *size = kept[id].size;
    return kept[id].bytes;
}

uint32_t iso_virgl_version(void)
{
    return ISO_VIRGL_VERSION;
}

/* The context and its resources. */

void iso_virgl_started(void)
{
    char text[ISO_FAULT_TEXT];

    iso_virgl_log_set_quiet(false);
    iso_virgl_log_take_error(text, sizeof(text));
}

int iso_virgl_context_create(uint32_t ctx_id, uint32_t capset_id, const char *name)
{
    int error;

    if (!ctx_id || ctx_id > INT32_MAX || context_id)
        return EINVAL;
    if (capset_id == 0)
        capset_id = CAPSET_VIRGL2;
    if (capset_id != CAPSET_VIRGL && capset_id != CAPSET_VIRGL2)
        return EINVAL;
    error = abs(virgl_renderer_context_create_with_flags(ctx_id, capset_id, (uint32_t)strnlen(name, ISO_VIRGL_NAME_MAX), name));
    if (!error)
        context_id = ctx_id;
    return error;
}

void iso_virgl_context_destroy(void)
{
    if (context_id)
        virgl_renderer_context_destroy(context_id);
    context_id = 0;
}

uint32_t iso_virgl_context_id(void)
{
    return context_id;
}

static bool exists(uint32_t resource_id)
{
    struct virgl_renderer_resource_info info;

    return virgl_renderer_resource_get_info((int)resource_id, &info) == 0;
}

int iso_virgl_resource_attach(const struct iso_virgl_resource *resource)
{
    struct virgl_renderer_resource_create_args arguments = {
        .handle = resource->resource_id,
        .target = resource->target,
        .format = resource->format,
        .bind = resource->bind,
        .width = resource->width,
        .height = resource->height,
        .depth = resource->depth,
        .array_size = resource->array_size,
        .last_level = resource->last_level,
        .nr_samples = resource->nr_samples,
        .flags = resource->flags,
    };
    int error;

    if (!context_id || !resource->resource_id || resource->resource_id > INT32_MAX || exists(resource->resource_id))
        return EINVAL;
    error = abs(virgl_renderer_resource_create(&arguments, NULL, 0));
    if (!error)
        virgl_renderer_ctx_attach_resource((int)context_id, (int)resource->resource_id);
    return error;
}

int iso_virgl_resource_detach(uint32_t resource_id)
{
    if (!context_id || !exists(resource_id))
        return ENOENT;
    virgl_renderer_ctx_detach_resource((int)context_id, (int)resource_id);
    virgl_renderer_resource_unref(resource_id);
    return 0;
}
