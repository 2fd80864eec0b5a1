/*
 * Drives consumer.c and the null engine without Python, so that it can be built with sanitizers: a producer thread fills the
 * command ring with records of all kinds, for objects of all kinds, takes the completions and checks them, while the consumer
 * runs in another thread. Then rings with random contents are consumed, which must end and nothing else.
 *
 * Usage: consumer_driver RECORDS ROUNDS. Prints what it did; any failed check ends it with a message and code 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "consumer.h"
#include "null_engine.h"

#define STAGING_BYTES 65536u
#define OBJECTS 6u

#define CHECK(condition)                                                                                                       \
    do {                                                                                                                       \
        if (!(condition)) {                                                                                                    \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                                    \
            exit(1);                                                                                                           \
        }                                                                                                                      \
    } while (0)

struct world {
    int ring_fd, staging_fd, worker_doorbell, master_doorbell, channel[2];
    struct iso_ring_header *ring;
    struct iso_engine *engine;
    struct iso_consumer *consumer;
    uint64_t head, next_seq, cpl_tail, answered, expected, done;
    uint64_t random;
};

static uint32_t next_random(struct world *world)
{
    world->random ^= world->random << 13;
    world->random ^= world->random >> 7;
    world->random ^= world->random << 17;
    return (uint32_t)(world->random >> 16);
}

static int sealed_memfd(uint64_t bytes)
{
    int fd = memfd_create("driver", MFD_ALLOW_SEALING | MFD_CLOEXEC);

    CHECK(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    return fd;
}

/* A buffer; textures of several levels and layers, one with a mirror; one imported, with room between its rows; one of which
 * nothing is known; one that is exported. */
static void make_objects(struct iso_engine *engine)
{
    struct iso_null_objects *objects = iso_null_engine_objects(engine);
    const struct iso_texture buffer = {.format = 64, .width = 5000, .height = 1, .depth = 1, .array_size = 1};
    const struct iso_texture levels = {
        .target = 2, .format = 1, .width = 33, .height = 9, .depth = 1, .array_size = 2, .last_level = 3};
    const struct iso_texture picture = {.target = 2, .format = 1, .width = 16, .height = 16, .depth = 1, .array_size = 1};
    const struct iso_texture unknown = {0};
    const struct iso_texture blocks = {.target = 3, .format = 105, .width = 10, .height = 6, .depth = 4, .array_size = 1};
    struct iso_null_storage storage = {.nbytes = 8192, .offset = 128, .stride = 100};
    int memory = sealed_memfd(65536), exported;

    CHECK(!iso_null_object_make(objects, 1, &buffer) && !iso_null_object_make(objects, 2, &levels));
    CHECK(!iso_null_object_mirror(objects, 2, 65536, memory) && !iso_null_object_mirror(objects, 2, 65536, memory));
    CHECK(!iso_null_object_import(objects, 3, &picture, &storage, memory, false));
    CHECK(!iso_null_object_import(objects, 4, &unknown, &(struct iso_null_storage){.nbytes = 65536}, memory, true));
    CHECK(!iso_null_object_make(objects, 5, &blocks) && !iso_null_object_export(objects, 5, &storage, &exported));
    CHECK(iso_null_object_export(objects, 5, &storage, &exported) == EBUSY);
    CHECK(!iso_null_object_make(objects, OBJECTS, &levels));
    iso_null_object_drop(objects, OBJECTS);
    close(exported);
    close(memory);
}

static void world_open(struct world *world, uint64_t seed)
{
    memset(world, 0, sizeof(*world));
    world->random = seed * 0x9e3779b97f4a7c15ull + 1;
    world->next_seq = 1;
    world->ring_fd = sealed_memfd(ISO_RING_TOTAL_BYTES);
    world->staging_fd = sealed_memfd(STAGING_BYTES);
    world->worker_doorbell = eventfd(0, EFD_NONBLOCK);
    world->master_doorbell = eventfd(0, EFD_NONBLOCK);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, world->channel) == 0);
    world->ring = mmap(NULL, ISO_RING_TOTAL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, world->ring_fd, 0);
    CHECK(world->ring != MAP_FAILED);
    world->engine = iso_null_engine_new();
    CHECK(world->engine);
    make_objects(world->engine);
    world->ring->magic = ISO_RING_MAGIC + 1;
    CHECK(!iso_consumer_new(world->ring_fd, world->staging_fd, -1, -1, -1, world->engine) && errno == EPROTO);
    world->ring->magic = ISO_RING_MAGIC;
    world->ring->version = ISO_RING_VERSION;
    world->ring->cmd_bytes = ISO_RING_CMD_BYTES;
    world->ring->cpl_entries = ISO_RING_CPL_ENTRIES;
    world->consumer = iso_consumer_new(world->ring_fd, world->staging_fd, world->worker_doorbell, world->master_doorbell,
                                       world->channel[1], world->engine);
    CHECK(world->consumer);
}

static void world_close(struct world *world)
{
    int fds[] = {world->ring_fd, world->staging_fd, world->worker_doorbell, world->master_doorbell, world->channel[1]};

    iso_null_engine_free(world->engine);
    iso_consumer_free(world->consumer);
    munmap(world->ring, ISO_RING_TOTAL_BYTES);
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        close(fds[i]);
}

static void knock(int fd)
{
    const uint64_t one = 1;

    CHECK(write(fd, &one, sizeof(one)) == sizeof(one) || errno == EAGAIN);
}

static void take_completions(struct world *world)
{
    uint64_t head = atomic_load(&world->ring->cpl_head);

    CHECK(head - world->cpl_tail <= ISO_RING_CPL_ENTRIES);
    for (; world->cpl_tail < head; world->cpl_tail++) {
        struct iso_completion completion = iso_ring_cpl_base(world->ring)[world->cpl_tail % ISO_RING_CPL_ENTRIES];
        CHECK(completion.seq > 0 && completion.seq < world->next_seq);
        CHECK(completion.status <= ISO_STATUS_OUT_OF_MEMORY);
        world->done += completion.status == ISO_STATUS_OK;
        world->answered++;
    }
    atomic_store(&world->ring->cpl_tail, world->cpl_tail);
}

static void wait_for_worker(struct world *world, _Atomic uint32_t *word)
{
    struct pollfd doorbell = {.fd = world->master_doorbell, .events = POLLIN};
    uint64_t count;

    atomic_store(word, 1);
    if (atomic_load(&world->ring->cpl_head) == world->cpl_tail)
        poll(&doorbell, 1, 100);
    if (read(world->master_doorbell, &count, sizeof(count)) < 0)
        CHECK(errno == EAGAIN);
    take_completions(world);
}

static void put(struct world *world, uint32_t type, uint32_t flags, const void *payload, uint32_t len)
{
    const uint32_t size = iso_ring_record_size(len);
    uint8_t *base = iso_ring_cmd_base(world->ring);
    uint64_t at;

    while (world->head + 2 * (uint64_t)size - atomic_load(&world->ring->cmd_tail) > ISO_RING_CMD_BYTES)
        wait_for_worker(world, &world->ring->want_room);
    at = world->head % ISO_RING_CMD_BYTES;
    if (at + size > ISO_RING_CMD_BYTES) {
        struct iso_record pad = {.size = (uint32_t)(ISO_RING_CMD_BYTES - at), .type = ISO_RECORD_PAD};
        memcpy(base + at, &pad, sizeof(pad));
        world->head += pad.size;
        at = 0;
    }
    struct iso_record record = {.size = size, .type = type, .seq = world->next_seq++, .flags = flags, .payload_len = len};
    memcpy(base + at, &record, sizeof(record));
    memcpy(base + at + sizeof(record), payload, len);
    world->head += size;
    world->expected += flags != 0;
    atomic_store(&world->ring->cmd_head, world->head);
    if (atomic_load(&world->ring->worker_sleeping) && atomic_exchange(&world->ring->worker_sleeping, 0))
        knock(world->worker_doorbell);
    take_completions(world);
}

/* Small mostly. */
static uint32_t number(struct world *world)
{
    return next_random(world) >> next_random(world) % 32;
}

static struct iso_transfer random_transfer(struct world *world)
{
    return (struct iso_transfer){.resource_id = next_random(world) % (OBJECTS + 1), .level = number(world) % 5,
                                 .x = number(world), .y = number(world) % 32, .z = number(world) % 4, .w = number(world),
                                 .h = number(world) % 32, .d = number(world) % 4, .stride = number(world),
                                 .layer_stride = number(world), .offset = next_random(world) % (2 * STAGING_BYTES),
                                 .len = number(world) % STAGING_BYTES};
}

static void put_stream(struct world *world, uint32_t flags)
{
    const uint32_t first = next_random(world) % (OBJECTS + 1), second = next_random(world) % (OBJECTS + 1);
    const uint32_t words[] = {
        ISO_NULL_FILL, first,         number(world),         number(world), 7,      ISO_NULL_CHECK, first, 0, number(world), 7,
        ISO_NULL_BLOB, number(world), number(world) % 10000, ISO_NULL_COPY, second, first,
    };
    static const uint32_t starts[] = {0, 5, 10, 13};

    uint32_t start = starts[next_random(world) % 4];
    put(world, ISO_RECORD_SUBMIT, flags, words + start, sizeof(words) - 4 * start - next_random(world) % 2);
}

static void put_one_of_many(struct world *world)
{
    static const uint8_t bytes[ISO_RING_MAX_PAYLOAD];
    static const uint32_t opcodes[] = {ISO_NULL_NOP, ISO_NULL_FAIL};
    const uint32_t flags = next_random(world) % 3;
    const uint32_t words[2] = {opcodes[next_random(world) % 2], 0};
    const struct iso_transfer transfer = random_transfer(world);
    const struct iso_copy copy = {.resource_id = next_random(world) % (OBJECTS + 1)};

    switch (next_random(world) % 9) {
    case 0:
        put(world, ISO_RECORD_SUBMIT, flags, bytes, next_random(world) % (next_random(world) % 64 ? 5000 : sizeof(bytes)));
        break;
    case 1:
        put(world, ISO_RECORD_TRANSFER_WRITE, flags, &transfer, sizeof(transfer));
        break;
    case 2:
        put(world, ISO_RECORD_TRANSFER_READ, flags, &transfer, sizeof(transfer) - (next_random(world) % 8 == 0));
        break;
    case 3:
        put(world, ISO_RECORD_FENCE, ISO_FLAG_FENCE, "", 0);
        break;
    case 4:
        put(world, ISO_RECORD_CONTROL, flags, "message", 7);
        break;
    case 5:
        put(world, ISO_RECORD_COPY_OUT, flags, &copy, sizeof(copy) - (next_random(world) % 8 == 0));
        break;
    case 6:
        put(world, ISO_RECORD_COPY_IN, flags, &copy, sizeof(copy));
        break;
    case 7:
        put_stream(world, flags);
        break;
    default:
        put(world, ISO_RECORD_SUBMIT, flags, words, sizeof(words));
    }
}

static void *consume(void *cookie)
{
    struct world *world = cookie;
    struct iso_wake_event event;

    for (;;) {
        switch (iso_consumer_run(world->consumer, &event)) {
        case ISO_WAKE_CONTROL:
            CHECK(event.payload_len == 7 && memcmp(event.payload, "message", 7) == 0);
            CHECK(iso_consumer_finish(world->consumer, ISO_STATUS_OK) == 0);
            CHECK(iso_consumer_finish(world->consumer, ISO_STATUS_OK) == -1);
            break;
        case ISO_WAKE_FAULT:
            CHECK(strcmp(event.text, "told to fail") == 0 || strncmp(event.text, "byte ", 5) == 0);
            break;
        case ISO_WAKE_HANGUP:
            return NULL;
        default:
            fprintf(stderr, "consumer: %s\n", event.text);
            exit(1);
        }
    }
}

static void run_records(uint64_t records)
{
    struct world world;
    struct iso_consumer_statistics statistics;
    pthread_t thread;

    world_open(&world, 1);
    CHECK(pthread_create(&thread, NULL, consume, &world) == 0);
    for (uint64_t i = 0; i < records; i++)
        put_one_of_many(&world);
    while (world.answered < world.expected)
        wait_for_worker(&world, &world.ring->master_sleeping);
    close(world.channel[0]);
    pthread_join(thread, NULL);
    CHECK(iso_consumer_drain(world.consumer, 1000) == 0);
    iso_consumer_statistics(world.consumer, &statistics);
    CHECK(statistics.records == records && statistics.completions == world.expected);
    CHECK(world.answered == world.expected && atomic_load(&world.ring->cmd_tail) == world.head);
    printf("%llu records, %llu completions, %llu of success, %llu ring lengths, %llu sleeps\n", (unsigned long long)records,
           (unsigned long long)world.answered, (unsigned long long)world.done,
           (unsigned long long)(world.head / ISO_RING_CMD_BYTES), (unsigned long long)statistics.sleeps);
    world_close(&world);
}

/* Headers that are right but for a field or two, and bytes that are nothing at all. */
static void scribble(struct world *world)
{
    uint8_t *at = iso_ring_cmd_base(world->ring);
    uint64_t seq = 1, used = 0;

    for (int i = 0; i < 200; i++) {
        uint32_t len = next_random(world) % 128;
        struct iso_record record = {.size = iso_ring_record_size(len), .type = next_random(world) % 7, .seq = seq++,
                                    .flags = next_random(world) % 4, .payload_len = len};
        memcpy(at + used, &record, sizeof(record));
        if (next_random(world) % 20 == 0)
            ((uint32_t *)(at + used))[next_random(world) % 8] = next_random(world) << next_random(world) % 32;
        memset(at + used + sizeof(record), 0, record.size - sizeof(record));
        used += record.size;
    }
    atomic_store(&world->ring->cmd_head, next_random(world) % 4 ? used : next_random(world));
    if (next_random(world) % 8 == 0)
        atomic_store(&world->ring->cpl_tail, next_random(world));
}

static void run_garbage(uint64_t rounds)
{
    uint64_t ends[8] = {0};

    for (uint64_t round = 0; round < rounds; round++) {
        struct world world;
        struct iso_wake_event event;
        world_open(&world, round + 2);
        scribble(&world);
        close(world.channel[0]);
        while (iso_consumer_run(world.consumer, &event) == ISO_WAKE_CONTROL || event.reason == ISO_WAKE_FAULT)
            if (event.reason == ISO_WAKE_CONTROL)
                iso_consumer_finish(world.consumer, ISO_STATUS_OK);
        ends[event.reason]++;
        world_close(&world);
    }
    printf("%llu rings of garbage: %llu found broken, %llu hung up\n", (unsigned long long)rounds,
           (unsigned long long)ends[ISO_WAKE_BROKEN], (unsigned long long)ends[ISO_WAKE_HANGUP]);
    CHECK(ends[ISO_WAKE_BROKEN] > 0);
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    run_records(strtoull(argv[1], NULL, 10));
    run_garbage(strtoull(argv[2], NULL, 10));
    return 0;
}
