/* The commands of protocol version 3: capability sets, blobs, timeline syncs. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "vtest_state.h"

bool iso_vtest_get_param(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    uint32_t reply[] = {0, 0}; /* whether it is known, its value */

    (void)length;
    if (arguments[0] == ISO_VTEST_PARAM_MAX_TIMELINE_COUNT) {
        reply[0] = 1;
        reply[1] = ISO_VTEST_TIMELINE_COUNT;
    }
    return iso_vtest_reply(session, ISO_VTEST_GET_PARAM, reply, 2);
}

bool iso_vtest_get_capset(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    uint32_t version, size, known;
    const void *bytes = session->ops->capset(session->engine, arguments[0], &version, &size);

    (void)length;
    known = bytes && arguments[1] <= version;
    if (!known)
        return iso_vtest_reply(session, ISO_VTEST_GET_CAPSET, &known, 1);
    const uint32_t header[] = {1 + size / 4, ISO_VTEST_GET_CAPSET, known};
    if (iso_stream_put(&session->stream, header, sizeof(header)) && iso_stream_put(&session->stream, bytes, size / 4 * 4))
        return true;
    return iso_vtest_lost(session);
}

bool iso_vtest_context_init(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    (void)length;
    if (!arguments[0] || (session->has_context && session->capset_id != arguments[0]))
        return iso_vtest_refuse(session, "CONTEXT_INIT for capability set %u", arguments[0]);
    session->capset_id = arguments[0];
    return iso_vtest_need_context(session);
}

/* Blobs. */

static bool refuse_blob(struct iso_vtest_session *session, const struct iso_vtest_blob *blob, int error)
{
    return iso_vtest_refuse(session, "no blob of memory type %u, %llu bytes: %s", blob->memory,
                            (unsigned long long)blob->size, strerror(error));
}

static bool give_blob(struct iso_vtest_session *session, struct iso_vtest_resource *resource, int fd)
{
    bool given = iso_vtest_reply(session, ISO_VTEST_RESOURCE_CREATE_BLOB, &resource->id, 1);

    if (fd < 0)
        return given && iso_vtest_resource_give(session, resource);
    if (given && !iso_stream_put_fd(&session->stream, fd))
        given = iso_vtest_lost(session);
    close(fd);
    return given;
}

bool iso_vtest_create_blob(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    const struct iso_vtest_blob blob = {
        .memory = arguments[0],
        .flags = arguments[1],
        .size = arguments[2] | (uint64_t)arguments[3] << 32,
        .blob_id = arguments[4] | (uint64_t)arguments[5] << 32,
    };
    bool guest = blob.memory == ISO_VTEST_BLOB_GUEST || blob.memory == ISO_VTEST_BLOB_HOST3D_GUEST;
    struct iso_vtest_resource *resource;
    int fd = -1, error;

    (void)length;
    if (!blob.size || (!guest && blob.memory != ISO_VTEST_BLOB_HOST3D))
        return refuse_blob(session, &blob, EINVAL);
    resource = iso_vtest_resource_new(&session->resources, 0);
    if (!resource)
        return refuse_blob(session, &blob, errno);
    session->statistics.resources++;
    if (guest && iso_vtest_resource_share(&session->resources, resource, blob.size))
        return refuse_blob(session, &blob, errno);
    error = session->ops->blob_create(session->engine, resource->id, &blob, guest ? &resource->iov : NULL, &fd);
    if (error)
        return refuse_blob(session, &blob, error);
    return give_blob(session, resource, fd);
}

/* Syncs. */

static uint64_t value_of(const uint32_t *words)
{
    return words[0] | (uint64_t)words[1] << 32;
}

static struct iso_sync *find_sync(struct iso_vtest_session *session, uint32_t id)
{
    struct iso_sync *sync = iso_sync_get(&session->syncs, id);

    if (!sync)
        iso_vtest_refuse(session, "sync %u, which there is not", id);
    return sync;
}

bool iso_vtest_sync_create(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    struct iso_sync *sync = iso_sync_new(&session->syncs, value_of(arguments));

    (void)length;
    if (!sync)
        return iso_vtest_refuse(session, "no more syncs: %s", strerror(errno));
    return iso_vtest_reply(session, ISO_VTEST_SYNC_CREATE, &sync->id, 1);
}

bool iso_vtest_sync_unref(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    (void)length;
    iso_sync_drop(&session->syncs, arguments[0]);
    return true;
}

bool iso_vtest_sync_read(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    const struct iso_sync *sync = find_sync(session, arguments[0]);

    (void)length;
    if (!sync)
        return false;
    const uint32_t reply[] = {(uint32_t)sync->value, (uint32_t)(sync->value >> 32)};
    return iso_vtest_reply(session, ISO_VTEST_SYNC_READ, reply, 2);
}

bool iso_vtest_sync_write(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    struct iso_sync *sync = find_sync(session, arguments[0]);

    (void)length;
    if (!sync)
        return false;
    iso_sync_signal(&session->syncs, sync, value_of(arguments + 1));
    return true;
}

/* All arguments of a command whose length counts. */
static const uint32_t *all_arguments(struct iso_vtest_session *session, uint32_t length)
{
    const uint8_t *found = iso_stream_payload(&session->stream, (size_t)length * 4);

    if (!found)
        iso_vtest_lost(session);
    return (const uint32_t *)(const void *)found;
}

/* arguments: flags, timeout in ms, then {id, value low, value high} each. */
bool iso_vtest_sync_wait(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    uint32_t count = length / ISO_VTEST_SYNC_WORDS;
    int fd;

    if (length != 2 + count * ISO_VTEST_SYNC_WORDS || count > ISO_VTEST_MAX_SYNCS_AT_ONCE)
        return iso_vtest_refuse(session, "a SYNC_WAIT of %u words", length);
    arguments = all_arguments(session, length);
    if (!arguments)
        return false;
    if (iso_sync_wait(&session->syncs, arguments + 2, count, arguments[0] & ISO_VTEST_SYNC_WAIT_FLAG_ANY, arguments[1], &fd))
        return iso_vtest_refuse(session, "a wait for %u syncs: %s", count, strerror(errno));
    bool given = iso_vtest_reply(session, ISO_VTEST_SYNC_WAIT, NULL, 0);
    if (given && !iso_stream_put_fd(&session->stream, fd))
        given = iso_vtest_lost(session);
    close(fd);
    return given;
}

static bool is_inside(uint32_t offset, uint64_t words, uint32_t length)
{
    return offset <= length && words <= length - offset;
}

/* The batch's syncs: signalled now, or when its work is done if it names a timeline. All timelines are one, in order. */
static bool follow_batch(struct iso_vtest_session *session, const struct iso_vtest_batch *batch, const uint32_t *points)
{
    void *fence = NULL;

    if (batch->flags & ISO_VTEST_BATCH_FLAG_TIMELINE)
        fence = session->ops->fence(session->engine);
    if (fence) {
        session->statistics.fences++;
        if (!iso_sync_pend(&session->syncs, points, batch->sync_count, fence))
            return true;
        session->ops->fence_drop(session->engine, fence);
        return iso_vtest_refuse(session, "a batch with %u syncs: %s", batch->sync_count, strerror(errno));
    }
    for (uint32_t i = 0; i < batch->sync_count; i++) {
        struct iso_sync *sync = find_sync(session, points[i * ISO_VTEST_SYNC_WORDS]);
        if (!sync)
            return false;
        iso_sync_signal(&session->syncs, sync, value_of(points + i * ISO_VTEST_SYNC_WORDS + 1));
    }
    return true;
}

static bool run_batch(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length, uint32_t index)
{
    struct iso_vtest_batch batch;

    memcpy(&batch, arguments + 1 + (size_t)index * ISO_VTEST_BATCH_STRIDE, sizeof(batch));
    if (!is_inside(batch.cmd_offset, batch.cmd_size, length) ||
        !is_inside(batch.sync_offset, (uint64_t)batch.sync_count * ISO_VTEST_SYNC_WORDS, length) ||
        batch.sync_count > ISO_VTEST_MAX_SYNCS_AT_ONCE || batch.timeline >= ISO_VTEST_TIMELINE_COUNT)
        return iso_vtest_refuse(session, "batch %u of a SUBMIT_CMD2 of %u words", index, length);
    if (batch.cmd_size && !iso_vtest_submit(session, arguments + batch.cmd_offset, batch.cmd_size))
        return false;
    return !batch.sync_count || follow_batch(session, &batch, arguments + batch.sync_offset);
}

bool iso_vtest_submit_cmd2(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    const uint32_t last_words = sizeof(struct iso_vtest_batch) / 4; /* the last batch may leave its reserved words out */
    uint32_t count;

    if (!length || length > ISO_VTEST_MAX_SUBMIT_BYTES / 4)
        return iso_vtest_refuse(session, "a SUBMIT_CMD2 of %u words", length);
    if (!iso_stream_flush(&session->stream))
        return iso_vtest_lost(session);
    arguments = all_arguments(session, length);
    if (!arguments)
        return false;
    count = arguments[0];
    if (count && 1 + (uint64_t)(count - 1) * ISO_VTEST_BATCH_STRIDE + last_words > length)
        return iso_vtest_refuse(session, "a SUBMIT_CMD2 of %u batches in %u words", count, length);
    for (uint32_t i = 0; i < count; i++)
        if (!run_batch(session, arguments, length, i))
            return false;
    return true;
}
