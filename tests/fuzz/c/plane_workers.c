/* The workers' ends of the lanes of a plane_world. */
#include "plane_world.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

static void *map(int fd, size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    CHECK(memory != MAP_FAILED);
    return memory;
}

static int make_memory(uint64_t bytes)
{
    int fd = memfd_create("worker", MFD_CLOEXEC);

    CHECK(fd >= 0 && !ftruncate(fd, (off_t)bytes));
    return fd;
}

struct played *any_lane(struct world *world)
{
    struct played *played = &world->lanes[input_u8(&world->input) % LANES];

    return played->lane ? played : NULL;
}

void lane_opens(struct world *world)
{
    const uint32_t number = input_u8(&world->input) % LANES;
    struct played *played = &world->lanes[number];
    int ring, staging, doorbell;

    if (played->lane)
        return;
    ring = make_memory(ISO_RING_TOTAL_BYTES);
    staging = make_memory(STAGING_BYTES);
    doorbell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    *played = (struct played){.ring = map(ring, ISO_RING_TOTAL_BYTES), .staging = map(staging, STAGING_BYTES)};
    played->lane = iso_lane_new(number + 1, ring, staging, STAGING_BYTES, doorbell, doorbell);
    CHECK(played->lane && !iso_plane_lane_add(world->plane, played->lane));
    close(ring);
    close(staging);
    close(doorbell);
}

void lane_closes(struct world *world, struct played *played)
{
    iso_plane_lane_free(world->plane, played->lane);
    munmap(played->ring, ISO_RING_TOTAL_BYTES);
    munmap(played->staging, STAGING_BYTES);
    *played = (struct played){0};
}

static void check_transfer(const struct iso_record *record, const uint8_t *payload)
{
    struct iso_transfer transfer;

    CHECK(record->payload_len == sizeof(transfer) && (record->flags & ISO_FLAG_COMPLETE));
    memcpy(&transfer, payload, sizeof(transfer));
    CHECK(transfer.len && transfer.offset <= STAGING_BYTES && transfer.len <= STAGING_BYTES - transfer.offset);
}

static void remember(struct played *played, const struct iso_record *record)
{
    if (played->waiting_count == MAX_WAITING)
        return; /* a worker that forgets */
    played->waiting[played->waiting_count++] = *record;
}

static bool fits(const struct played *played, const struct iso_record *record, uint64_t left)
{
    return record->size >= sizeof(*record) && !(record->size % ISO_RING_RECORD_ALIGN) && record->size <= left &&
           played->tail % ISO_RING_CMD_BYTES + record->size <= ISO_RING_CMD_BYTES;
}

/* One that is no padding. */
static void take_record(struct played *played, const struct iso_record *record, const uint8_t *payload)
{
    if (!played->scribbled) {
        CHECK(record->payload_len <= record->size - sizeof(*record) && record->seq == played->seen_seq + 1);
        if (record->type == ISO_RECORD_TRANSFER_WRITE || record->type == ISO_RECORD_TRANSFER_READ)
            check_transfer(record, payload);
        if (record->type == ISO_RECORD_COPY_OUT || record->type == ISO_RECORD_COPY_IN)
            CHECK(record->payload_len == sizeof(struct iso_copy) && !record->flags);
    }
    played->seen_seq = record->seq;
    if (record->flags)
        remember(played, record);
}

void worker_consumes(struct played *played)
{
    const uint64_t head = atomic_load(&played->ring->cmd_head);

    if (head - played->tail > ISO_RING_CMD_BYTES) {
        CHECK(played->scribbled);
        return;
    }
    while (played->tail < head) {
        const uint8_t *at = iso_ring_cmd_base(played->ring) + played->tail % ISO_RING_CMD_BYTES;
        struct iso_record record;
        memcpy(&record, at, sizeof(record));
        if (!fits(played, &record, head - played->tail)) {
            CHECK(played->scribbled);
            break;
        }
        if (record.type != ISO_RECORD_PAD)
            take_record(played, &record, at + sizeof(record));
        played->tail += record.size;
    }
    atomic_store(&played->ring->begun, played->seen_seq);
    atomic_store(&played->ring->cmd_tail, played->tail);
}

void worker_completes(struct played *played, uint64_t seq, uint32_t status)
{
    iso_ring_cpl_base(played->ring)[played->completed % ISO_RING_CPL_ENTRIES] =
        (struct iso_completion){.seq = seq, .status = status};
    atomic_store(&played->ring->cpl_head, ++played->completed);
}

void plane_hears(struct world *world, struct played *played)
{
    const struct iso_lane *lane = played->lane;

    pthread_mutex_lock(&world->plane->lock);
    iso_lane_drain(world->plane, played->lane);
    iso_plane_pass(world->plane);
    CHECK(lane->pending_count <= ISO_LANE_MAX_PENDING && lane->cmd_tail <= lane->cmd_head);
    CHECK(lane->cmd_head - lane->cmd_tail <= ISO_RING_CMD_BYTES);
    CHECK(lane->staging_head - lane->staging_tail <= lane->staging_bytes);
    CHECK(!lane->lost || (!lane->pending_count && !lane->backlog_first));
    pthread_mutex_unlock(&world->plane->lock);
}
