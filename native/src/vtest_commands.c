/* The commands of protocol versions 0 to 2, which Mesa's GL driver speaks, and the table of all. */
#include <errno.h>
#include <string.h>

#include "vtest_state.h"

enum { BUSY_SLICE_MS = 100 }; /* how often a wait looks whether the master is still there */
enum { CAPSET_VIRGL = 1, CAPSET_VIRGL2 = 2 };

/* Handshake and capabilities. */

static bool ping(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    (void)arguments;
    (void)length;
    return iso_vtest_reply(session, ISO_VTEST_PING_PROTOCOL_VERSION, NULL, 0);
}

/* Version 1 never worked: its clients fall back to 0, as those of virgl_test_server do. A client may ask again. */
static bool protocol_version(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    uint32_t version = arguments[0] < ISO_VTEST_VERSION ? arguments[0] : ISO_VTEST_VERSION;

    (void)length;
    session->protocol_version = version == 1 ? 0 : version;
    return iso_vtest_reply(session, ISO_VTEST_PROTOCOL_VERSION, &session->protocol_version, 1);
}

/* The reply's length is in bytes, plus one, and its number is that of the set. */
static bool send_caps(struct iso_vtest_session *session, uint32_t capset_id)
{
    uint32_t version, size;
    const void *bytes = session->ops->capset(session->engine, capset_id, &version, &size);
    const uint32_t header[] = {size + 1, capset_id};

    if (!bytes)
        return iso_vtest_refuse(session, "there is no capability set %u", capset_id);
    if (iso_stream_put(&session->stream, header, sizeof(header)) && iso_stream_put(&session->stream, bytes, size))
        return true;
    return iso_vtest_lost(session);
}

static bool get_caps(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    (void)arguments;
    (void)length;
    return send_caps(session, CAPSET_VIRGL);
}

static bool get_caps2(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    (void)arguments;
    (void)length;
    return send_caps(session, CAPSET_VIRGL2);
}

/* Resources. */

static void drop_resource(struct iso_vtest_session *session, struct iso_vtest_resource *resource)
{
    session->ops->resource_drop(session->engine, resource->id);
    iso_vtest_resource_free(&session->resources, resource);
}

bool iso_vtest_resource_give(struct iso_vtest_session *session, struct iso_vtest_resource *resource)
{
    if (!iso_stream_put_fd(&session->stream, resource->shared.fd))
        return iso_vtest_lost(session);
    iso_vtest_resource_sent(&session->resources, resource);
    return true;
}

static bool share(struct iso_vtest_session *session, struct iso_vtest_resource *resource, uint64_t bytes)
{
    int error = 0;

    if (iso_vtest_resource_share(&session->resources, resource, bytes))
        error = errno;
    else
        error = session->ops->resource_back(session->engine, resource->id, &resource->iov);
    if (error)
        return iso_vtest_refuse(session, "%llu bytes for resource %u: %s", (unsigned long long)bytes, resource->id,
                                strerror(error));
    return iso_vtest_resource_give(session, resource);
}

/* arguments: id, then those of struct iso_vtest_texture. `bytes` 0: no memory to share. */
static bool create_resource(struct iso_vtest_session *session, uint32_t number, const uint32_t *arguments, uint32_t bytes)
{
    struct iso_vtest_texture texture;
    struct iso_vtest_resource *resource;
    bool ours = session->protocol_version >= 3;
    int error;

    if (ours ? arguments[0] != 0 : arguments[0] == 0)
        return iso_vtest_refuse(session, "resource id %u in protocol version %u", arguments[0], session->protocol_version);
    resource = iso_vtest_resource_new(&session->resources, arguments[0]);
    if (!resource)
        return iso_vtest_refuse(session, "resource %u: %s", arguments[0], strerror(errno));
    memcpy(&texture, arguments + 1, sizeof(texture));
    session->statistics.resources++;
    error = session->ops->resource_create(session->engine, resource->id, &texture);
    if (error)
        return iso_vtest_refuse(session, "no resource of target %u, format %u, bind 0x%x, %ux%ux%u: %s", texture.target,
                                texture.format, texture.bind, texture.width, texture.height, texture.depth, strerror(error));
    if (ours && !iso_vtest_reply(session, number, &resource->id, 1))
        return false;
    return !bytes || share(session, resource, bytes);
}

static bool resource_create(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    (void)length;
    return create_resource(session, ISO_VTEST_RESOURCE_CREATE, arguments, 0);
}

static bool resource_create2(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    (void)length;
    return create_resource(session, ISO_VTEST_RESOURCE_CREATE2, arguments, arguments[10]);
}

static bool resource_unref(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    struct iso_vtest_resource *resource = iso_vtest_resource_get(&session->resources, arguments[0]);

    (void)length;
    if (resource)
        drop_resource(session, resource);
    return true; /* the peer takes an unknown id as well */
}

/* Transfers. One that the engine refuses is the client's loss, reported and not fatal, as with virgl_test_server. */

static struct iso_vtest_resource *transferred(struct iso_vtest_session *session, uint32_t id)
{
    struct iso_vtest_resource *resource = iso_vtest_resource_get(&session->resources, id);

    session->statistics.transfers++;
    if (!resource)
        iso_vtest_refuse(session, "a transfer of resource %u, which there is not", id);
    return resource;
}

/* TRANSFER_GET and _PUT: the data is in the stream, and laid out as the strides say. */
static bool decode_transfer(struct iso_vtest_session *session, const uint32_t *arguments, struct iso_vtest_transfer *transfer)
{
    *transfer = (struct iso_vtest_transfer){
        .resource_id = arguments[0], .level = arguments[1], .stride = arguments[2], .layer_stride = arguments[3],
    };
    memcpy(&transfer->box, arguments + 4, sizeof(transfer->box));
    if (arguments[10] > ISO_VTEST_MAX_TRANSFER_BYTES)
        return iso_vtest_refuse(session, "a transfer of %u bytes", arguments[10]);
    return transferred(session, transfer->resource_id);
}

static bool transfer_get(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    struct iso_vtest_transfer transfer;
    struct iovec iov = {.iov_len = arguments[10]};

    (void)length;
    if (!decode_transfer(session, arguments, &transfer))
        return false;
    if (!iov.iov_len)
        return true;
    iov.iov_base = iso_stream_scratch(&session->stream, iov.iov_len);
    if (!iov.iov_base)
        return iso_vtest_lost(session);
    memset(iov.iov_base, 0, iov.iov_len); /* gaps between rows, and all of it if the transfer fails */
    session->ops->transfer(session->engine, &transfer, &iov);
    return iso_stream_put(&session->stream, iov.iov_base, iov.iov_len) || iso_vtest_lost(session);
}

static bool transfer_put(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    struct iso_vtest_transfer transfer;

    (void)length;
    if (!decode_transfer(session, arguments, &transfer))
        return false;
    transfer.write = true;
    const uint8_t *data = iso_stream_payload(&session->stream, arguments[10]);
    if (!data)
        return iso_vtest_lost(session);
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = arguments[10]};
    if (iov.iov_len)
        session->ops->transfer(session->engine, &transfer, &iov);
    return true;
}

/* TRANSFER_GET2 and _PUT2: through the memory that the client shares. */
static bool transfer2(struct iso_vtest_session *session, const uint32_t *arguments, bool write)
{
    struct iso_vtest_transfer transfer = {
        .resource_id = arguments[0], .level = arguments[1], .offset = arguments[9], .write = write,
    };
    const struct iso_vtest_resource *resource = transferred(session, transfer.resource_id);

    if (!resource)
        return false;
    if (transfer.offset >= resource->iov.iov_len)
        return iso_vtest_refuse(session, "a transfer at %u of the %zu bytes of resource %u", arguments[9],
                                resource->iov.iov_len, resource->id);
    memcpy(&transfer.box, arguments + 2, sizeof(transfer.box));
    session->ops->transfer(session->engine, &transfer, NULL);
    return true;
}

static bool transfer_get2(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    (void)length;
    return transfer2(session, arguments, false);
}

static bool transfer_put2(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    (void)length;
    return transfer2(session, arguments, true);
}

/* Work. */

static bool submit_cmd(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    (void)arguments;
    if (length > ISO_VTEST_MAX_SUBMIT_BYTES / 4)
        return iso_vtest_refuse(session, "a command stream of %u words", length);
    if (!iso_stream_flush(&session->stream)) /* no reply waits for the work */
        return iso_vtest_lost(session);
    const uint8_t *stream = iso_stream_payload(&session->stream, (size_t)length * 4);
    if (!stream)
        return iso_vtest_lost(session);
    return iso_vtest_submit(session, stream, length);
}

/*
 * Busy is the whole session, not the resource: so it is with virgl_test_server, and Mesa relies on it, for whom a fence is
 * a resource made after the submit. Before there is a context the id has to be 0: that is how a client finds out whether
 * PING_PROTOCOL_VERSION is answered.
 */
static bool resource_busy_wait(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length)
{
    uint32_t busy = 0;

    (void)length;
    session->statistics.waits++;
    if (!session->has_context && arguments[0])
        return iso_vtest_refuse(session, "a wait for resource %u before there is any", arguments[0]);
    if (arguments[1] & ISO_VTEST_BUSY_WAIT_FLAG_WAIT) {
        while (!iso_vtest_idle(session, BUSY_SLICE_MS))
            if (atomic_load(&session->master) != ISO_MASTER_THERE) {
                session->stream.ended = true;
                return iso_vtest_lost(session);
            }
    } else {
        busy = !iso_vtest_idle(session, 0);
    }
    return iso_vtest_reply(session, ISO_VTEST_RESOURCE_BUSY_WAIT, &busy, 1);
}

static const struct iso_vtest_handler handlers[] = {
    [ISO_VTEST_GET_CAPS] = {get_caps, 0, false},
    [ISO_VTEST_RESOURCE_CREATE] = {resource_create, 10, true},
    [ISO_VTEST_RESOURCE_UNREF] = {resource_unref, 1, true},
    [ISO_VTEST_TRANSFER_GET] = {transfer_get, 11, true},
    [ISO_VTEST_TRANSFER_PUT] = {transfer_put, 11, true},
    [ISO_VTEST_SUBMIT_CMD] = {submit_cmd, 0, true},
    [ISO_VTEST_RESOURCE_BUSY_WAIT] = {resource_busy_wait, 2, false},
    [ISO_VTEST_GET_CAPS2] = {get_caps2, 0, false},
    [ISO_VTEST_PING_PROTOCOL_VERSION] = {ping, 0, false},
    [ISO_VTEST_PROTOCOL_VERSION] = {protocol_version, 1, false},
    [ISO_VTEST_RESOURCE_CREATE2] = {resource_create2, 11, true},
    [ISO_VTEST_TRANSFER_GET2] = {transfer_get2, 10, true},
    [ISO_VTEST_TRANSFER_PUT2] = {transfer_put2, 10, true},
    [ISO_VTEST_GET_PARAM] = {iso_vtest_get_param, 1, false},
    [ISO_VTEST_GET_CAPSET] = {iso_vtest_get_capset, 2, false},
    [ISO_VTEST_CONTEXT_INIT] = {iso_vtest_context_init, 1, false},
    [ISO_VTEST_RESOURCE_CREATE_BLOB] = {iso_vtest_create_blob, 6, true},
    [ISO_VTEST_SYNC_CREATE] = {iso_vtest_sync_create, 2, true},
    [ISO_VTEST_SYNC_UNREF] = {iso_vtest_sync_unref, 1, true},
    [ISO_VTEST_SYNC_READ] = {iso_vtest_sync_read, 1, true},
    [ISO_VTEST_SYNC_WRITE] = {iso_vtest_sync_write, 3, true},
    [ISO_VTEST_SYNC_WAIT] = {iso_vtest_sync_wait, 0, true},
    [ISO_VTEST_SUBMIT_CMD2] = {iso_vtest_submit_cmd2, 0, true},
};

const struct iso_vtest_handler *iso_vtest_handler(uint32_t number)
{
    if (number >= sizeof(handlers) / sizeof(handlers[0]) || !handlers[number].run)
        return NULL;
    return &handlers[number];
}
