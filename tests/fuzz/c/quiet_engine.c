#include "quiet_engine.h"

#include <errno.h>
#include <unistd.h>

static struct quiet_engine *of(struct iso_engine *engine)
{
    return (struct quiet_engine *)engine;
}

/* So that AddressSanitizer has seen each byte. */
static void look_at(const void *bytes, size_t len)
{
    static volatile uint8_t sum;

    for (size_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + ((const uint8_t *)bytes)[i]);
}

static uint32_t answer(struct iso_engine *engine)
{
    const uint8_t byte = input_u8(of(engine)->input);

    if (byte < 250)
        return ISO_STATUS_OK;
    iso_engine_fault(engine, "told to say %u", byte - 249u);
    return byte - 249u;
}

static uint32_t quiet_submit(struct iso_engine *engine, uint32_t ctx_id, const void *payload, uint32_t len)
{
    (void)ctx_id;
    look_at(payload, len);
    return answer(engine);
}

static uint32_t quiet_write(struct iso_engine *engine, uint32_t ctx_id, const struct iso_transfer *transfer, uint8_t *staging)
{
    (void)ctx_id;
    look_at(staging, transfer->len);
    return answer(engine);
}

static uint32_t quiet_read(struct iso_engine *engine, uint32_t ctx_id, const struct iso_transfer *transfer, uint8_t *staging)
{
    (void)ctx_id;
    memset(staging, 0x5a, transfer->len);
    return answer(engine);
}

static uint32_t quiet_copy(struct iso_engine *engine, uint32_t ctx_id, uint32_t resource_id)
{
    (void)ctx_id;
    (void)resource_id;
    return answer(engine);
}

static void finish_one(struct quiet_engine *engine)
{
    const uint64_t seq = engine->fences[0];

    memmove(engine->fences, engine->fences + 1, --engine->fence_count * sizeof(engine->fences[0]));
    engine->base.fence_done(engine->base.cookie, seq);
}

static uint32_t quiet_fence(struct iso_engine *engine, uint32_t ctx_id, uint32_t ring_idx, uint64_t seq, uint64_t patience_ns)
{
    struct quiet_engine *quiet = of(engine);
    const uint8_t how = input_u8(quiet->input);

    (void)ctx_id;
    (void)ring_idx;
    (void)patience_ns;
    if (how >= 250 || quiet->fence_count == sizeof(quiet->fences) / sizeof(quiet->fences[0]))
        return ISO_STATUS_FAILED;
    quiet->fences[quiet->fence_count++] = seq;
    while (how & 1 && quiet->fence_count)
        finish_one(quiet);
    return ISO_STATUS_OK;
}

static void quiet_poll(struct iso_engine *engine)
{
    struct quiet_engine *quiet = of(engine);

    if (quiet->between)
        quiet->between(quiet);
    if (quiet->fence_count && (input_u8(quiet->input) & 1))
        finish_one(quiet);
}

static int quiet_poll_fd(struct iso_engine *engine)
{
    (void)engine;
    return -1;
}

/* ---- for a vtest session ---- */

static const void *vtest_capset(struct iso_engine *engine, uint32_t id, uint32_t *version, uint32_t *size)
{
    static const uint32_t words[100];

    (void)engine;
    *version = 2;
    *size = id == 1 ? sizeof(words) - 4 : sizeof(words);
    return id == 1 || id == 2 ? words : NULL;
}

static int refusal(struct iso_engine *engine)
{
    return input_u8(of(engine)->input) < 250 ? 0 : EINVAL;
}

static int vtest_context_create(struct iso_engine *engine, uint32_t capset_id, const char *name)
{
    (void)name;
    return capset_id > 2 ? EINVAL : refusal(engine);
}

static int vtest_resource_create(struct iso_engine *engine, uint32_t id, const struct iso_vtest_texture *texture)
{
    (void)id;
    return texture->width ? refusal(engine) : EINVAL;
}

static int vtest_resource_back(struct iso_engine *engine, uint32_t id, struct iovec *iov)
{
    (void)id;
    look_at(iov->iov_base, iov->iov_len < 4096 ? iov->iov_len : 4096);
    return refusal(engine);
}

static int vtest_blob_create(struct iso_engine *engine, uint32_t id, const struct iso_vtest_blob *blob, struct iovec *iov, int *fd)
{
    (void)id;
    (void)blob;
    if (!iov && !refusal(engine))
        *fd = dup(STDIN_FILENO);
    return iov || *fd >= 0 ? 0 : ENOTSUP;
}

static void vtest_resource_drop(struct iso_engine *engine, uint32_t id)
{
    (void)engine;
    (void)id;
}

static int vtest_transfer(struct iso_engine *engine, const struct iso_vtest_transfer *transfer, struct iovec *iov)
{
    if (iov && transfer->write)
        look_at(iov->iov_base, iov->iov_len);
    else if (iov)
        memset(iov->iov_base, 0x5a, iov->iov_len);
    return (int)answer(engine);
}

static int vtest_submit(struct iso_engine *engine, const void *stream, uint32_t words)
{
    look_at(stream, 4 * (size_t)words);
    return (int)answer(engine);
}

static void vtest_flush(struct iso_engine *engine)
{
    (void)engine;
}

static void *vtest_fence(struct iso_engine *engine)
{
    uint8_t *looks = input_u8(of(engine)->input) < 250 ? malloc(1) : NULL;

    if (looks)
        *looks = input_u8(of(engine)->input) % 4; /* before it is passed */
    of(engine)->objects += !!looks;
    return looks;
}

static bool vtest_fence_wait(struct iso_engine *engine, void *fence, uint32_t timeout_ms)
{
    uint8_t *looks = fence;

    (void)engine;
    (void)timeout_ms;
    return !*looks || !(*looks)--;
}

static void vtest_fence_drop(struct iso_engine *engine, void *fence)
{
    of(engine)->objects--;
    free(fence);
}

void quiet_engine_init(struct quiet_engine *engine, struct input *input)
{
    static const struct iso_vtest_ops vtest = {
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
    static const struct iso_engine_ops ops = {
        .name = "quiet",
        .submit = quiet_submit,
        .transfer_write = quiet_write,
        .transfer_read = quiet_read,
        .copy_out = quiet_copy,
        .copy_in = quiet_copy,
        .create_fence = quiet_fence,
        .poll = quiet_poll,
        .poll_fd = quiet_poll_fd,
        .vtest = &vtest,
    };

    *engine = (struct quiet_engine){.base.ops = &ops, .input = input};
}

void quiet_engine_settle(struct quiet_engine *engine)
{
    while (engine->fence_count)
        finish_one(engine);
}
