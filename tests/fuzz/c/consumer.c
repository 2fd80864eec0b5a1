/*
 * The worker's side of a command ring that holds anything: records with a field wrong, indices that jump, completions that
 * nobody takes. It changes whenever the consumer looks around; when the input has ended the master is gone.
 */
#include "consumer.h"
#include "quiet_engine.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { STAGING_BYTES = 4096, MOST_PAYLOAD = 512 };

struct master {
    struct input *input;
    struct iso_ring_header *ring;
    int ring_fd, staging_fd, channel;
    uint64_t head, seq;
};

static int sealed(uint64_t bytes)
{
    int fd = memfd_create("fuzz", MFD_ALLOW_SEALING | MFD_CLOEXEC);

    CHECK(fd >= 0 && !ftruncate(fd, (off_t)bytes) && !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
    return fd;
}

static void open_master(struct master *master, struct input *input)
{
    *master = (struct master){.input = input, .ring_fd = sealed(ISO_RING_TOTAL_BYTES), .staging_fd = sealed(STAGING_BYTES)};
    master->ring = mmap(NULL, ISO_RING_TOTAL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, master->ring_fd, 0);
    CHECK(master->ring != MAP_FAILED);
    master->ring->magic = ISO_RING_MAGIC;
    master->ring->version = ISO_RING_VERSION;
    master->ring->cmd_bytes = ISO_RING_CMD_BYTES;
    master->ring->cpl_entries = ISO_RING_CPL_ENTRIES;
    master->head = input_u8(input) & 1 ? ISO_RING_CMD_BYTES - 32u * input_u8(input) : 0;
    if (input_u8(input) > 250)
        master->head = input_u64(input);
    atomic_store(&master->ring->cmd_head, master->head);
    atomic_store(&master->ring->cmd_tail, master->head);
    if (input_u8(input) > 200)
        atomic_store(&master->ring->cpl_head, input_u64(input));
    atomic_store(&master->ring->cpl_tail, atomic_load(&master->ring->cpl_head));
}

/* One record, right but for what `how` says. */
static void put_record(struct master *master)
{
    struct input *input = master->input;
    const uint8_t how = input_u8(input), type = input_u8(input);
    uint8_t *base = iso_ring_cmd_base(master->ring);
    uint64_t at = master->head % ISO_RING_CMD_BYTES & ~UINT64_C(31);
    uint8_t payload[MOST_PAYLOAD];
    uint32_t len = how & 1 ? sizeof(struct iso_transfer) : how & 8 ? sizeof(struct iso_copy) : input_u16(input) % sizeof(payload);
    struct iso_record record = {.size = iso_ring_record_size(len), .type = type & 16 ? ISO_RECORD_CONTROL : type % 7,
                                .seq = ++master->seq, .flags = how >> 1 & 3, .ring_idx = 0, .payload_len = len, .ctx_id = 1};

    if (record.type == ISO_RECORD_PAD || at + record.size > ISO_RING_CMD_BYTES)
        record = (struct iso_record){.size = (uint32_t)(ISO_RING_CMD_BYTES - at), .type = ISO_RECORD_PAD};
    master->head += record.size;
    if (how & 64)
        ((uint32_t *)&record)[input_u8(input) % 8] = input_number(input);
    input_copy(input, payload, len);
    memcpy(base + at, &record, sizeof(record));
    if (at + sizeof(record) + len <= ISO_RING_CMD_BYTES)
        memcpy(base + at + sizeof(record), payload, len);
    atomic_store(&master->ring->cmd_head, master->head);
}

static void write_header(struct master *master)
{
    const uint8_t how = input_u8(master->input);
    const uint64_t value = how & 64 ? input_u64(master->input) : input_number(master->input);

    switch (how % 6) {
    case 0:
        atomic_store(&master->ring->cmd_head, value);
        break;
    case 1:
        atomic_store(&master->ring->cmd_tail, value);
        break;
    case 2:
        atomic_store(&master->ring->cpl_tail, value);
        break;
    case 3:
        atomic_store(&master->ring->master_sleeping, (uint32_t)value);
        break;
    case 4:
        atomic_store(&master->ring->want_room, (uint32_t)value);
        break;
    default:
        atomic_store(&master->ring->worker_sleeping, (uint32_t)value);
    }
}

/* What happens while the consumer looks around. */
static void act(struct quiet_engine *engine)
{
    struct master *master = engine->cookie;
    const uint8_t what = input_u8(master->input);

    if (what < 8)
        write_header(master);
    for (uint8_t i = 0; i < what % 4 + 1; i++)
        put_record(master);
    if (what & 32)
        atomic_store(&master->ring->cpl_tail, atomic_load(&master->ring->cpl_head));
    if (!input_more(master->input) && master->channel >= 0) {
        close(master->channel);
        master->channel = -1;
    }
}

static void run(struct iso_consumer *consumer, struct input *input)
{
    struct iso_wake_event event;
    volatile uint8_t sum = 0;

    for (;;) {
        switch (iso_consumer_run(consumer, &event)) {
        case ISO_WAKE_CONTROL:
            for (uint32_t i = 0; i < event.payload_len; i++)
                sum = (uint8_t)(sum + event.payload[i]);
            CHECK(!iso_consumer_finish(consumer, input_u8(input) % 6));
            CHECK(iso_consumer_finish(consumer, ISO_STATUS_OK));
            break;
        case ISO_WAKE_FAULT:
            CHECK(event.faults && event.text[0]);
            break;
        case ISO_WAKE_BROKEN:
            CHECK(event.text[0]);
            return;
        default:
            CHECK(event.reason == ISO_WAKE_HANGUP);
            return;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct master master;
    struct quiet_engine engine;
    int ends[2], bell = eventfd(UINT32_MAX, EFD_NONBLOCK | EFD_SEMAPHORE | EFD_CLOEXEC); /* rung for ever */

    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends));
    open_master(&master, &input);
    master.channel = ends[0];
    quiet_engine_init(&engine, &input);
    engine.between = act;
    engine.cookie = &master;
    struct iso_consumer *consumer = iso_consumer_new(master.ring_fd, master.staging_fd, bell, bell, ends[1], &engine.base);
    CHECK(consumer);
    run(consumer, &input);
    if (master.channel >= 0)
        close(master.channel);
    atomic_store(&master.ring->cpl_tail, atomic_load(&master.ring->cpl_head));
    quiet_engine_settle(&engine);
    iso_consumer_free(consumer);
    munmap(master.ring, ISO_RING_TOTAL_BYTES);
    close(master.ring_fd);
    close(master.staging_fd);
    close(ends[1]);
    close(bell);
    return 0;
}
