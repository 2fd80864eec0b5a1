#include "virgl_engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "virgl_api.h"
#include "virgl_egl.h"
#include "virgl_gl_fence.h"
#include "virgl_limits.h"
#include "virgl_log.h"
#include "virgl_stream.h"
#include "virgl_vtest.h"

enum { CAPSET_VIRGL = 1, CAPSET_VIRGL2 = 2 };

static struct iso_engine engine;
static uint32_t max_shader_bytes;
static bool has_own_blobs; /* which virglrenderer is not to make; not for vtest, whose clients have its */
static bool queries_wait; /* for a fence of virglrenderer's: streams asked for their results */
static _Atomic uint64_t fences_under_way; /* on virglrenderer's sync thread */

/* Fences. */

static void write_context_fence(void *cookie, uint32_t ctx_id, uint32_t ring_idx, uint64_t fence_id)
{
    (void)cookie;
    (void)ctx_id;
    (void)ring_idx;
    engine.fence_done(engine.cookie, fence_id);
    atomic_fetch_sub(&fences_under_way, 1);
}

static void write_fence(void *cookie, uint32_t fence)
{
    (void)cookie;
    (void)fence; /* of context 0, for which no fence is ever created */
}

/* Whether all that the current GL context was told is done within patience_ns. */
static bool is_done(uint64_t patience_ns)
{
    void *fence = iso_gl_fence();
    bool done = fence && iso_gl_fence_wait(fence, patience_ns);

    if (fence)
        iso_gl_fence_drop(fence);
    return done;
}

/*
 * vrend has the one timeline: what a guest puts on several is kept in order on this one. A fence of its own costs two changes
 * of thread, to its sync thread and back, which for a short command is most of its latency; so while there is time, this
 * thread waits itself. Not if streams asked for the results of queries: vrend sees to those when it retires a fence.
 */
static uint32_t virgl_create_fence(struct iso_engine *self, uint32_t ctx_id, uint32_t ring_idx, uint64_t seq, uint64_t patience_ns)
{
    (void)ring_idx;
    if (!iso_virgl_context_get(ctx_id)) {
        self->fence_done(self->cookie, seq); /* nothing can be under way */
        return ISO_STATUS_OK;
    }
    if (patience_ns && !queries_wait && !atomic_load(&fences_under_way) && is_done(patience_ns)) {
        self->fence_done(self->cookie, seq);
        return ISO_STATUS_OK;
    }
    queries_wait = false;
    atomic_fetch_add(&fences_under_way, 1);
    if (virgl_renderer_context_create_fence(ctx_id, 0, 0, seq) == 0)
        return ISO_STATUS_OK;
    atomic_fetch_sub(&fences_under_way, 1);
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
    case ENOENT:
        return ISO_STATUS_INVALID_RESOURCE;
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

bool iso_virgl_queries_wait(void)
{
    return queries_wait;
}

/* The payload is 32-byte aligned in the ring, and virglrenderer does not write to it. */
static int execute(uint32_t ctx_id, const uint32_t *stream, uint32_t words)
{
    return words ? virgl_renderer_submit_cmd((void *)(uintptr_t)stream, (int)ctx_id, (int)words) : 0;
}

/* As virglrenderer does after commands that cannot be executed, skip all drawing of the context: this one is cut off. */
static void give_up(uint32_t ctx_id, const uint32_t *command)
{
    const uint32_t cut = iso_virgl_number(command[0]) | 1u << 16;

    execute(ctx_id, &cut, 1);
}

static bool is_ours(const uint32_t *command)
{
    const uint32_t number = iso_virgl_number(command[0]);

    return number == ISO_VIRGL_PIPE_RESOURCE_CREATE || number == ISO_VIRGL_PIPE_RESOURCE_SET_TYPE;
}

static int execute_ours(uint32_t ctx_id, const uint32_t *command)
{
    int error;

    if (iso_virgl_number(command[0]) == ISO_VIRGL_PIPE_RESOURCE_CREATE)
        error = iso_virgl_blobs_announce(&iso_virgl_context_get(ctx_id)->blobs, command);
    else
        error = iso_virgl_resource_set_type(ctx_id, command);
    if (error)
        give_up(ctx_id, command);
    return error;
}

/* virglrenderer gets the stream in pieces around what is ours. The stream was checked. */
static int execute_around_blobs(uint32_t ctx_id, const uint32_t *stream, uint32_t words)
{
    uint32_t from = 0;
    int error = 0;

    for (uint32_t at = 0, next; !error && at < words; at = next) {
        next = at + 1 + iso_virgl_length(stream[at]);
        if (!is_ours(stream + at))
            continue;
        error = execute(ctx_id, stream + from, at - from);
        if (!error)
            error = execute_ours(ctx_id, stream + at);
        from = next;
    }
    return error ? error : execute(ctx_id, stream + from, words - from);
}

/* A stream that is refused costs its context nothing else: virglrenderer never sees it. */
static uint32_t virgl_submit(struct iso_engine *self, uint32_t ctx_id, const void *payload, uint32_t len)
{
    const struct iso_virgl_context *context = iso_virgl_context_get(ctx_id);
    struct iso_virgl_finding finding;
    uint32_t status;
    int error;

    if (!context || len % 4)
        return ISO_STATUS_INVALID_PARAMETER;
    if (!len)
        return ISO_STATUS_OK;
    status = iso_virgl_check(payload, len / 4, max_shader_bytes, context->usage, &finding);
    if (status != ISO_STATUS_OK) {
        iso_engine_fault(self, "%s", finding.text);
        return status;
    }
    queries_wait = queries_wait || finding.asks_for_query;
    if (finding.has_blobs && has_own_blobs)
        error = execute_around_blobs(ctx_id, payload, len / 4);
    else
        error = execute(ctx_id, payload, len / 4);
    iso_virgl_report("submit", error);
    return status_of(error);
}

static uint32_t virgl_transfer(struct iso_engine *self, uint32_t ctx_id, const struct iso_transfer *transfer, uint8_t *staging, bool write)
{
    struct virgl_box box = {transfer->x, transfer->y, transfer->z, transfer->w, transfer->h, transfer->d};
    struct iovec iov = {.iov_base = staging, .iov_len = (size_t)transfer->len};
    int error;

    (void)self;
    if (!iso_virgl_context_get(ctx_id))
        return ISO_STATUS_INVALID_PARAMETER;
    if (write)
        iso_virgl_mark_written(transfer->resource_id);
    if (write)
        error = virgl_renderer_transfer_write_iov(transfer->resource_id, ctx_id, (int)transfer->level, transfer->stride,
                                                  transfer->layer_stride, &box, 0, &iov, 1);
    else
        error = virgl_renderer_transfer_read_iov(transfer->resource_id, ctx_id, transfer->level, transfer->stride,
                                                 transfer->layer_stride, &box, 0, &iov, 1);
    iso_virgl_report(write ? "transfer to a resource" : "transfer from a resource", error);
    return status_of(error);
}

static uint32_t virgl_transfer_write(struct iso_engine *self, uint32_t ctx_id, const struct iso_transfer *transfer,
                                     uint8_t *staging)
{
    return virgl_transfer(self, ctx_id, transfer, staging, true);
}

static uint32_t virgl_transfer_read(struct iso_engine *self, uint32_t ctx_id, const struct iso_transfer *transfer,
                                     uint8_t *staging)
{
    return virgl_transfer(self, ctx_id, transfer, staging, false);
}

/* The order may ask for copies of what is about to be mirrored, or not after all: that is nothing to tell of. */
static uint32_t copied(const char *what, int error)
{
    if (error == ENOENT)
        return ISO_STATUS_INVALID_RESOURCE;
    iso_virgl_report(what, error);
    return status_of(error);
}

static uint32_t virgl_copy_out(struct iso_engine *self, uint32_t ctx_id, uint32_t resource_id)
{
    (void)self;
    (void)ctx_id;
    return copied("copy to a mirror", iso_virgl_resource_copy_out(resource_id));
}

static uint32_t virgl_copy_in(struct iso_engine *self, uint32_t ctx_id, uint32_t resource_id)
{
    (void)self;
    (void)ctx_id;
    return copied("copy from a mirror", iso_virgl_resource_copy_in(resource_id));
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
    .copy_out = virgl_copy_out,
    .copy_in = virgl_copy_in,
    .create_fence = virgl_create_fence,
    .poll = virgl_poll,
    .poll_fd = virgl_poll_fd,
    .vtest = &iso_virgl_vtest_ops,
};

/* Start. */

struct iso_engine *iso_virgl_engine_init(void *egl_display, void *egl_config, bool gles, uint32_t use,
                                         uint32_t most_shader_bytes, char *error_text, size_t error_size)
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
    max_shader_bytes = most_shader_bytes;
    has_own_blobs = use != ISO_VIRGL_FOR_VTEST;
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
