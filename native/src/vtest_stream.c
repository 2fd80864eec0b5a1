#include "vtest_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { ALIGN = 4 };

int iso_stream_open(struct iso_stream *stream, int fd)
{
    int flags = fcntl(fd, F_GETFL);

    memset(stream, 0, sizeof(*stream));
    stream->fd = fd;
    if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
        return -1;
    stream->input = malloc(ISO_STREAM_INPUT_BYTES);
    return stream->input ? 0 : -1;
}

void iso_stream_close(struct iso_stream *stream)
{
    free(stream->input);
    free(stream->payload);
    stream->input = stream->payload = NULL;
}

size_t iso_stream_buffered(const struct iso_stream *stream)
{
    return stream->tail - stream->head;
}

/* One recv(); true when it brought something. */
static bool receive(struct iso_stream *stream, void *to, size_t bytes, int flags, size_t *received)
{
    ssize_t got;

    do {
        stream->receives++;
        got = recv(stream->fd, to, bytes, flags);
    } while (got < 0 && errno == EINTR);
    if (got > 0) {
        *received = (size_t)got;
        return true;
    }
    if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK))
        stream->ended = true;
    return false;
}

/* Move what is buffered to the front of the buffer, which is aligned. */
static void compact(struct iso_stream *stream)
{
    if (!stream->head)
        return;
    memmove(stream->input, stream->input + stream->head, stream->tail - stream->head);
    stream->tail -= stream->head;
    stream->head = 0;
}

static bool receive_more(struct iso_stream *stream, int flags)
{
    size_t received;

    if (stream->ended || !receive(stream, stream->input + stream->tail, ISO_STREAM_INPUT_BYTES - stream->tail, flags, &received))
        return false;
    stream->tail += received;
    return true;
}

bool iso_stream_receive_nowait(struct iso_stream *stream)
{
    compact(stream);
    if (stream->tail < ISO_STREAM_INPUT_BYTES)
        receive_more(stream, MSG_DONTWAIT);
    return !stream->ended;
}

const uint8_t *iso_stream_peek(struct iso_stream *stream, size_t bytes)
{
    if (stream->head % ALIGN || stream->head + bytes > ISO_STREAM_INPUT_BYTES)
        compact(stream);
    while (stream->tail - stream->head < bytes)
        if (!receive_more(stream, 0))
            return NULL;
    return stream->input + stream->head;
}

void iso_stream_take(struct iso_stream *stream, size_t bytes)
{
    stream->head += bytes;
    if (stream->head == stream->tail)
        stream->head = stream->tail = 0; /* so that the buffer's first pages, which are in the cache, are used again */
}

uint8_t *iso_stream_scratch(struct iso_stream *stream, size_t bytes)
{
    if (bytes <= stream->payload_bytes)
        return stream->payload;
    free(stream->payload); /* not realloc(): nobody wants the old bytes copied */
    stream->payload = malloc(bytes);
    stream->payload_bytes = stream->payload ? bytes : 0;
    return stream->payload;
}

void iso_stream_trim(struct iso_stream *stream)
{
    if (stream->payload_bytes <= ISO_STREAM_KEPT_BYTES)
        return;
    free(stream->payload);
    stream->payload = NULL;
    stream->payload_bytes = 0;
}

const uint8_t *iso_stream_payload(struct iso_stream *stream, size_t bytes)
{
    size_t at, received;

    errno = 0;
    if (bytes <= ISO_STREAM_INPUT_BYTES) {
        const uint8_t *found = iso_stream_peek(stream, bytes);
        if (found)
            iso_stream_take(stream, bytes);
        return found;
    }
    uint8_t *payload = iso_stream_scratch(stream, bytes);
    if (!payload)
        return NULL;
    at = iso_stream_buffered(stream);
    memcpy(payload, stream->input + stream->head, at);
    iso_stream_take(stream, at);
    for (; at < bytes; at += received)
        if (!receive(stream, payload + at, bytes - at, MSG_WAITALL, &received))
            return NULL;
    return payload;
}

static bool send_all(struct iso_stream *stream, const uint8_t *data, size_t bytes)
{
    while (bytes && !stream->ended) {
        stream->sends++;
        ssize_t sent = send(stream->fd, data, bytes, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0) {
            stream->ended = true;
            break;
        }
        data += sent;
        bytes -= (size_t)sent;
    }
    return !stream->ended;
}

bool iso_stream_flush(struct iso_stream *stream)
{
    size_t bytes = stream->gathered;

    stream->gathered = 0;
    return !bytes || send_all(stream, stream->output, bytes);
}

bool iso_stream_put(struct iso_stream *stream, const void *data, size_t bytes)
{
    if (!bytes)
        return true;
    if (bytes > sizeof(stream->output) - stream->gathered && !iso_stream_flush(stream))
        return false;
    if (bytes > sizeof(stream->output))
        return send_all(stream, data, bytes);
    memcpy(stream->output + stream->gathered, data, bytes);
    stream->gathered += bytes;
    return true;
}

bool iso_stream_put_fd(struct iso_stream *stream, int fd)
{
    char byte = 0;
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes),
    };
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    ssize_t sent;

    /* On its own: whoever reads the bytes before it with read() would lose a descriptor that came with them. */
    if (!iso_stream_flush(stream))
        return false;
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(rights), &fd, sizeof(int));
    do {
        stream->sends++;
        sent = sendmsg(stream->fd, &message, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0)
        stream->ended = true;
    return !stream->ended;
}
