/*
 * A vtest session and a client that sends anything, in pieces of any size. The socket is played: what the session receives is
 * the input, what it sends is looked at. No thread watches for the master.
 */
#include "quiet_engine.h"
#include "vtest_session.h"
#include "vtest_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST_SCRATCH = 1 << 20 };

static struct {
    struct input input;  /* what the client sends, and how */
    struct input engine; /* what the engine answers */
    uint8_t pieces;      /* the sizes in which it arrives */
} client;

ssize_t __wrap_recv(int fd, void *to, size_t size, int flags);
ssize_t __wrap_send(int fd, const void *from, size_t size, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags);
uint8_t *__real_iso_stream_scratch(struct iso_stream *stream, size_t bytes);
uint8_t *__wrap_iso_stream_scratch(struct iso_stream *stream, size_t bytes);

ssize_t __wrap_recv(int fd, void *to, size_t size, int flags)
{
    size_t piece = client.pieces & 1 ? 1 + client.pieces : size;

    (void)fd;
    client.pieces = (uint8_t)(client.pieces * 5 + 1) | (client.pieces & 128);
    if (piece > size)
        piece = size;
    if (piece > client.input.left)
        piece = client.input.left;
    if ((flags & MSG_DONTWAIT) && (client.pieces & 2)) {
        errno = EAGAIN;
        return -1;
    }
    input_copy(&client.input, to, piece);
    return (ssize_t)piece;
}

ssize_t __wrap_send(int fd, const void *from, size_t size, int flags)
{
    static volatile uint8_t sum;

    (void)fd;
    CHECK(flags & MSG_NOSIGNAL);
    for (size_t i = 0; i < size; i++)
        sum = (uint8_t)(sum + ((const uint8_t *)from)[i]);
    if (client.pieces == 255) {
        errno = EPIPE;
        return -1;
    }
    return (ssize_t)size;
}

ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags)
{
    int sent;

    memcpy(&sent, CMSG_DATA(CMSG_FIRSTHDR(message)), sizeof(sent));
    CHECK(fcntl(sent, F_GETFD) >= 0);
    return __wrap_send(fd, message->msg_iov->iov_base, message->msg_iov->iov_len, flags);
}

/* A reply of a gigabyte would be right and take its time. */
uint8_t *__wrap_iso_stream_scratch(struct iso_stream *stream, size_t bytes)
{
    return bytes > MOST_SCRATCH ? NULL : __real_iso_stream_scratch(stream, bytes);
}

static int count_fds(void)
{
    int count = 0;

    for (int fd = 0; fd < 128; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* The one that would watch for the master to go, which stays. */
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
int __wrap_pthread_join(pthread_t thread, void **result);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    (void)attributes;
    (void)start;
    (void)argument;
    *thread = pthread_self();
    return 0;
}

int __wrap_pthread_join(pthread_t thread, void **result)
{
    (void)result;
    CHECK(pthread_equal(thread, pthread_self()));
    return 0;
}

static void serve(struct iso_engine *engine, int fd, int channel)
{
    struct iso_vtest_session *session = iso_vtest_session_new(fd, channel, engine);
    struct iso_vtest_statistics statistics;
    struct iso_vtest_event event;

    CHECK(session);
    while (iso_vtest_session_run(session, &event) == ISO_VTEST_NAMED || event.reason == ISO_VTEST_FAULT)
        CHECK(memchr(event.text, 0, sizeof(event.text)));
    CHECK(event.reason == ISO_VTEST_LEFT || event.reason == ISO_VTEST_REFUSED);
    CHECK(event.reason != ISO_VTEST_REFUSED || event.text[0]);
    iso_vtest_session_statistics(session, &statistics);
    CHECK(statistics.commands >= statistics.submits + statistics.transfers);
    iso_vtest_session_free(session);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int socket_ends[2] = {-1, -1}, channel_ends[2];
    struct quiet_engine engine;
    uint8_t head[2] = {0, 0};

    if (socket_ends[0] < 0)
        CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, socket_ends) && !socketpair(AF_UNIX, SOCK_SEQPACKET, 0, channel_ends));
    client.input = (struct input){data, size};
    input_copy(&client.input, head, sizeof(head));
    client.pieces = head[0];
    /* The engine's answers are the last bytes of the input, some of them sent by the client as well. */
    client.engine = (struct input){data + size - (head[1] < size ? head[1] : size), head[1] < size ? head[1] : size};
    quiet_engine_init(&engine, &client.engine);
    int before = count_fds();
    serve(&engine.base, socket_ends[0], channel_ends[0]);
    CHECK(count_fds() == before && !engine.objects);
    return 0;
}
