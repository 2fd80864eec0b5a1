/*
 * A vtest session of the null engine and a hostile client, in one program without Python, to be built with sanitizers.
 *
 *     vtest_driver CLIENTS SEED
 *
 * Each client sends a handshake and then commands that are mostly well formed, with numbers that are mostly small: so that
 * resources and syncs are found, dropped and used again. Some bytes are wrong, some clients stop in the middle, some masters
 * hang up. Prints how the sessions ended.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "null_engine.h"
#include "vtest_ops.h"
#include "vtest_protocol.h"
#include "vtest_session.h"

enum { MAX_WORDS = 4096, COMMANDS = 200 };

struct client {
    int fd, master;
    uint64_t random;
    bool read_nothing;
    uint32_t version;
    uint32_t resources, syncs; /* created so far: their ids are 1 to that */
};

/* The null engine as far as garbage may drive it: it is not told to abort or to hang, and every word is looked at. */
static int careful_submit(struct iso_engine *engine, const void *stream, uint32_t words)
{
    static volatile uint32_t sum;

    for (uint32_t i = 0; i < words; i++)
        sum += ((const uint32_t *)stream)[i];
    if (words >= 2 && *(const uint32_t *)stream == ISO_NULL_DELAY && ((const uint32_t *)stream)[1] < 5)
        return (int)engine->ops->submit(engine, 0, stream, 8); /* that command and no more */
    return 0;
}

static struct iso_engine *careful_engine(void)
{
    static struct iso_engine_ops ops;
    static struct iso_vtest_ops vtest;
    struct iso_engine *engine = iso_null_engine_new();

    if (!engine)
        perror("null engine"), exit(2);
    vtest = *engine->ops->vtest;
    vtest.submit = careful_submit;
    ops = *engine->ops;
    ops.vtest = &vtest;
    engine->ops = &ops;
    return engine;
}

static uint32_t next(struct client *client)
{
    client->random ^= client->random << 13;
    client->random ^= client->random >> 7;
    client->random ^= client->random << 17;
    return (uint32_t)(client->random >> 16);
}

static uint32_t below(struct client *client, uint32_t limit)
{
    return next(client) % limit;
}

/* Mostly a small number, which is some id or size, sometimes an edge, rarely anything. */
static uint32_t any_number(struct client *client)
{
    static const uint32_t edges[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff, 4096, 65536, 1u << 20};

    switch (below(client, 12)) {
    case 0:
        return next(client);
    case 1:
        return edges[below(client, sizeof(edges) / sizeof(edges[0]))];
    default:
        return below(client, 6);
    }
}

static bool put(struct client *client, const void *data, size_t bytes)
{
    const uint8_t *at = data;

    while (bytes) {
        size_t piece = below(client, 4) ? bytes : 1 + below(client, (uint32_t)bytes);
        ssize_t sent = send(client->fd, at, piece, MSG_NOSIGNAL);
        if (sent < 0)
            return false;
        at += sent;
        bytes -= (size_t)sent;
    }
    return true;
}

/* Words behind the header that a command with a fixed number of them has. */
static uint32_t fixed_words(uint32_t number)
{
    static const uint8_t words[] = {0, 0, 10, 1, 11, 11, 0, 2, 0, 0, 0, 1, 11, 10, 10, 1, 2, 1, 6, 2, 1, 1, 3};

    return number < sizeof(words) ? words[number] : 0;
}

/* The first ones of both are kept, so that most commands find what they name; the later ones come and go. */
enum { KEPT = 4 };

static uint32_t kept_id(struct client *client)
{
    return 1 + below(client, KEPT);
}

static uint32_t later_id(struct client *client, uint32_t made)
{
    return made > KEPT ? KEPT + 1 + below(client, made - KEPT) : 0;
}

/* Sync points {id, value low, value high} of syncs that were made. */
static void fill_points(struct client *client, uint32_t *words, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        words[3 * i] = kept_id(client);
        words[3 * i + 1] = below(client, 5);
        words[3 * i + 2] = 0;
    }
}

static uint32_t fill_batches(struct client *client, uint32_t *words)
{
    uint32_t count = below(client, 4), length = 1 + 8 * count + below(client, 40);

    for (uint32_t i = 0; i < length; i++)
        words[i] = any_number(client);
    if (!below(client, 20))
        return length;
    words[0] = count;
    length = 1 + 8 * count + 9;
    fill_points(client, words + 1 + 8 * count, 3);
    for (uint32_t i = 0; i < count; i++) {
        struct iso_vtest_batch batch = {below(client, 2), 0, below(client, 4), 1 + 8 * count,
                                        below(client, 4), below(client, 64)};
        memcpy(words + 1 + 8 * i, &batch, sizeof(batch));
    }
    return length;
}

/* Make of arbitrary arguments such as a client means that is in its right mind. */
static void mend(struct client *client, uint32_t number, uint32_t *words, uint32_t count)
{
    switch (number) {
    case ISO_VTEST_RESOURCE_CREATE:
    case ISO_VTEST_RESOURCE_CREATE2:
        words[0] = client->version >= 3 ? 0 : client->resources + 1;
        words[4] = 1 + below(client, 64); /* width */
        words[10] = number == ISO_VTEST_RESOURCE_CREATE ? 0 : 1 + below(client, 20000);
        client->resources++;
        break;
    case ISO_VTEST_RESOURCE_CREATE_BLOB:
        words[0] = below(client, 2) ? ISO_VTEST_BLOB_GUEST : ISO_VTEST_BLOB_HOST3D_GUEST;
        words[2] = 1 + below(client, 20000);
        words[3] = 0;
        client->resources++;
        break;
    case ISO_VTEST_RESOURCE_UNREF:
        words[0] = later_id(client, client->resources);
        break;
    case ISO_VTEST_TRANSFER_GET:
    case ISO_VTEST_TRANSFER_PUT:
    case ISO_VTEST_TRANSFER_GET2:
    case ISO_VTEST_TRANSFER_PUT2:
        words[0] = kept_id(client);
        words[9] = number >= ISO_VTEST_RESOURCE_CREATE2 ? 0 : words[9];
        break;
    case ISO_VTEST_SYNC_CREATE:
        client->syncs++;
        break;
    case ISO_VTEST_SYNC_UNREF:
        words[0] = later_id(client, client->syncs);
        break;
    case ISO_VTEST_SYNC_READ:
    case ISO_VTEST_SYNC_WRITE:
        fill_points(client, words, 1);
        break;
    case ISO_VTEST_SYNC_WAIT:
        words[1] = below(client, 3) - 1;
        fill_points(client, words + 2, (count - 2) / 3);
        break;
    case ISO_VTEST_CONTEXT_INIT:
        words[0] = 2;
        break;
    }
}

/* The words of one command of that number; *length is what its header says. */
static uint32_t fill(struct client *client, uint32_t number, uint32_t *words, uint32_t *length)
{
    uint32_t count = fixed_words(number);

    if (number == ISO_VTEST_SUBMIT_CMD)
        count = below(client, 5) ? below(client, 8) : below(client, MAX_WORDS);
    if (number == ISO_VTEST_SYNC_WAIT)
        count = 2 + 3 * below(client, 6) + !below(client, 20);
    if (number == ISO_VTEST_SUBMIT_CMD2)
        return *length = fill_batches(client, words);
    for (uint32_t i = 0; i < count; i++)
        words[i] = any_number(client);
    if (number == ISO_VTEST_SUBMIT_CMD && count && words[0] != ISO_NULL_DELAY)
        words[0] = ISO_NULL_NOP;
    if (number == ISO_VTEST_SUBMIT_CMD && count > 1)
        words[1] = below(client, 3);
    *length = below(client, 30) || number == ISO_VTEST_SUBMIT_CMD ? count : any_number(client);
    if (client->syncs < KEPT || below(client, 60))
        mend(client, number, words, count);
    if (number == ISO_VTEST_TRANSFER_PUT || number == ISO_VTEST_TRANSFER_GET)
        words[10] = below(client, 40) ? 4 * below(client, 128) : any_number(client);
    if (number == ISO_VTEST_TRANSFER_PUT) {
        uint32_t data = words[10] / 4 < MAX_WORDS - count ? words[10] / 4 : 0;
        for (uint32_t i = 0; i < data; i++)
            words[count++] = next(client);
    }
    return count;
}

static void drain(struct client *client)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(8 * sizeof(int))];
    } control;
    char bytes[4096];

    for (;;) {
        struct iovec iov = {.iov_base = bytes, .iov_len = sizeof(bytes)};
        struct msghdr message = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes),
        };
        if (client->read_nothing || recvmsg(client->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) <= 0)
            return;
        for (struct cmsghdr *at = CMSG_FIRSTHDR(&message); at; at = CMSG_NXTHDR(&message, at)) {
            int fd;
            memcpy(&fd, CMSG_DATA(at), sizeof(fd));
            if (fd >= 0)
                close(fd);
        }
    }
}

static bool send_command(struct client *client)
{
    static const uint8_t often[] = {2, 3, 6, 7, 12, 13, 14, 4, 5, 18, 19, 20, 21, 22, 23, 24};
    uint32_t number = client->resources < KEPT ? ISO_VTEST_RESOURCE_CREATE2
                      : client->syncs < KEPT   ? ISO_VTEST_SYNC_CREATE
                      : below(client, 40)      ? often[below(client, sizeof(often))]
                                               : below(client, 26);
    uint32_t words[2 + MAX_WORDS], length;
    uint32_t count = fill(client, number, words + 2, &length);

    words[0] = length;
    words[1] = number;
    if (!below(client, 100))
        ((uint8_t *)words)[below(client, 8 + 4 * count)] ^= (uint8_t)next(client);
    if (!below(client, 100)) {
        put(client, words, below(client, 8 + 4 * count)); /* and is gone in the middle */
        return false;
    }
    bool sent = put(client, words, (2 + (size_t)count) * 4);
    drain(client);
    return sent;
}

static void *be_client(void *argument)
{
    struct client *client = argument;
    uint32_t hello[] = {4, ISO_VTEST_CREATE_RENDERER, 0x7a7a7566, 0, ISO_VTEST_PING_PROTOCOL_VERSION,
                        1, ISO_VTEST_PROTOCOL_VERSION, below(client, 5)};

    client->version = hello[7];
    client->read_nothing = !below(client, 10);
    if (below(client, 20))
        put(client, hello, sizeof(hello));
    for (uint32_t i = below(client, COMMANDS); i > 0 && send_command(client); i--)
        ;
    if (!below(client, 5))
        close(client->master), client->master = -1;
    if (client->read_nothing && client->master >= 0)
        close(client->master), client->master = -1; /* or the session would wait for us for ever */
    shutdown(client->fd, SHUT_WR);
    for (char byte[4096]; !client->read_nothing && recv(client->fd, byte, sizeof(byte), 0) > 0;)
        ;
    return NULL;
}

static void make_pair(int type, int *ours, int *theirs)
{
    int fds[2];

    if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds))
        perror("socketpair"), exit(2);
    *ours = fds[0];
    *theirs = fds[1];
}

static uint32_t serve(struct iso_engine *engine, uint64_t seed, struct iso_vtest_statistics *sum)
{
    struct client client = {.random = seed * 0x9e3779b97f4a7c15ull + 1};
    struct iso_vtest_event event;
    struct iso_vtest_statistics statistics;
    pthread_t thread;
    int socket, channel;

    make_pair(SOCK_STREAM, &client.fd, &socket);
    make_pair(SOCK_SEQPACKET, &client.master, &channel);
    struct iso_vtest_session *session = iso_vtest_session_new(socket, channel, engine);
    if (!session || pthread_create(&thread, NULL, be_client, &client))
        perror("session"), exit(2);
    while (iso_vtest_session_run(session, &event) == ISO_VTEST_NAMED || event.reason == ISO_VTEST_FAULT)
        ;
    shutdown(socket, SHUT_RDWR);
    pthread_join(thread, NULL);
    iso_vtest_session_statistics(session, &statistics);
    sum->commands += statistics.commands;
    sum->resources += statistics.resources;
    sum->fences += statistics.fences;
    iso_vtest_session_free(session);
    close(socket);
    close(channel);
    close(client.fd);
    if (client.master >= 0)
        close(client.master);
    return event.reason;
}

int main(int argc, char **argv)
{
    uint64_t ends[ISO_VTEST_SPOKEN + 1] = {0};
    struct iso_vtest_statistics sum = {0};
    struct iso_engine *engine = careful_engine();

    if (argc != 3)
        return 2;
    for (uint64_t i = 0; i < strtoull(argv[1], NULL, 10); i++)
        ends[serve(engine, strtoull(argv[2], NULL, 10) + i, &sum)]++;
    iso_null_engine_free(engine);
    printf("left %llu, refused %llu, hung up %llu; %llu commands, %llu resources, %llu fences\n",
           (unsigned long long)ends[ISO_VTEST_LEFT], (unsigned long long)ends[ISO_VTEST_REFUSED],
           (unsigned long long)ends[ISO_VTEST_HUNG_UP], (unsigned long long)sum.commands, (unsigned long long)sum.resources,
           (unsigned long long)sum.fences);
    return 0;
}
