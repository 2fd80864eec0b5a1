#include "lane.h"

#include "order.h"
#include "request.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STAGING_ALIGN = 64, SUBMIT_HEADER = 32 /* struct virtio_gpu_cmd_submit */ };

/* Small transfers would only have to get their pages again. And a piece is what may be given back while others wait for the
 * plane: half a millisecond or so. */
#define STAGING_KEPT (1u << 20)
#define TRIM_BYTES (8u << 20)
#define STAGING_PAGE 4096u

static void *map_shared(int fd, uint64_t bytes)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return NULL;
    if ((uint64_t)st.st_size < bytes) {
        errno = EINVAL;
        return NULL;
    }
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return map == MAP_FAILED ? NULL : map;
}

struct iso_lane *iso_lane_new(uint32_t id, int ring_fd, int staging_fd, uint64_t staging_bytes, int doorbell_out, int doorbell_in)
{
    struct iso_lane *lane = calloc(1, sizeof(*lane));
    if (!lane)
        return NULL;
    lane->id = id;
    lane->staging_bytes = staging_bytes;
    lane->next_seq = 1;
    lane->doorbell_out = fcntl(doorbell_out, F_DUPFD_CLOEXEC, 0);
    lane->doorbell_in = fcntl(doorbell_in, F_DUPFD_CLOEXEC, 0);
    lane->pending = calloc(ISO_LANE_MAX_PENDING, sizeof(*lane->pending));
    lane->ring = map_shared(ring_fd, ISO_RING_TOTAL_BYTES);
    lane->staging = map_shared(staging_fd, staging_bytes);
    if (lane->doorbell_out < 0 || lane->doorbell_in < 0 || !lane->pending || !lane->ring || !lane->staging) {
        int error = errno;
        iso_lane_free(lane);
        errno = error;
        return NULL;
    }
    lane->ring->magic = ISO_RING_MAGIC;
    lane->ring->version = ISO_RING_VERSION;
    lane->ring->cmd_bytes = ISO_RING_CMD_BYTES;
    lane->ring->cpl_entries = ISO_RING_CPL_ENTRIES;
    atomic_store(&lane->ring->master_sleeping, 1); /* the first completion must ring */
    return lane;
}

void iso_lane_free(struct iso_lane *lane)
{
    if (!lane)
        return;
    if (lane->ring)
        munmap(lane->ring, ISO_RING_TOTAL_BYTES);
    if (lane->staging)
        munmap(lane->staging, lane->staging_bytes);
    if (lane->doorbell_out >= 0)
        close(lane->doorbell_out);
    if (lane->doorbell_in >= 0)
        close(lane->doorbell_in);
    free(lane->pending);
    free(lane);
}

/* ---- placing ---- */

/* Reads the worker's tail once and believes it only if it makes sense. */
static bool refresh_tail(struct iso_lane *lane)
{
    uint64_t tail = atomic_load_explicit(&lane->ring->cmd_tail, memory_order_acquire);
    if (tail < lane->cmd_tail || tail > lane->cmd_head) {
        lane->lost = true;
        return false;
    }
    lane->cmd_tail = tail;
    return true;
}

static bool ring_room(struct iso_lane *lane, uint32_t size)
{
    uint32_t at = (uint32_t)(lane->cmd_head & (ISO_RING_CMD_BYTES - 1));
    uint64_t pad = at + size > ISO_RING_CMD_BYTES ? ISO_RING_CMD_BYTES - at : 0;
    if (lane->cmd_head + pad + size - lane->cmd_tail <= ISO_RING_CMD_BYTES)
        return true;
    return refresh_tail(lane) && lane->cmd_head + pad + size - lane->cmd_tail <= ISO_RING_CMD_BYTES;
}

/* Starts a record; the caller has seen that there is room, and writes the payload next. */
static uint8_t *record_begin(struct iso_lane *lane, uint32_t type, const struct iso_work *work, uint32_t payload_len)
{
    uint8_t *base = iso_ring_cmd_base(lane->ring);
    uint32_t size = iso_ring_record_size(payload_len), at = (uint32_t)(lane->cmd_head & (ISO_RING_CMD_BYTES - 1));
    if (at + size > ISO_RING_CMD_BYTES) {
        struct iso_record pad = {.size = ISO_RING_CMD_BYTES - at, .type = ISO_RECORD_PAD};
        memcpy(base + at, &pad, sizeof(pad));
        lane->cmd_head += pad.size;
        at = 0;
    }
    struct iso_record record = {.size = size, .type = type, .seq = lane->next_seq++, .flags = work->flags,
                                .ring_idx = work->ring_idx, .payload_len = payload_len, .ctx_id = work->ctx_id};
    memcpy(base + at, &record, sizeof(record));
    lane->cmd_head += size;
    return base + at + sizeof(record);
}

/* Takes a run of staging memory. False if there is no room now. */
static bool staging_take(struct iso_lane *lane, uint64_t len, uint64_t *offset)
{
    uint64_t at = lane->staging_head % lane->staging_bytes;
    uint64_t skip = at + len > lane->staging_bytes ? lane->staging_bytes - at : 0;
    uint64_t taken = (len + STAGING_ALIGN - 1) & ~(uint64_t)(STAGING_ALIGN - 1);
    if (lane->staging_head + skip + taken - lane->staging_tail > lane->staging_bytes)
        return false;
    *offset = (lane->staging_head + skip) % lane->staging_bytes;
    lane->staging_head += skip + taken;
    if (*offset + taken > lane->staging_used)
        lane->staging_used = *offset + taken;
    return true;
}

static void remember(struct iso_lane *lane, struct iso_work *work, uint64_t staging_end)
{
    uint32_t slot = (lane->pending_first + lane->pending_count++) % ISO_LANE_MAX_PENDING;
    lane->pending[slot] = (struct iso_pending){lane->next_seq - 1, staging_end, work, work->token, false};
}

static enum iso_place place_stream(struct iso_lane *lane, struct iso_work *work, const struct iso_guestmem *mem)
{
    if (work->len > ISO_RING_MAX_PAYLOAD)
        return ISO_PLACE_REFUSED;
    if (!ring_room(lane, iso_ring_record_size(work->len)))
        return ISO_PLACE_FULL;
    uint64_t head = lane->cmd_head, seq = lane->next_seq;
    uint8_t *payload = record_begin(lane, work->len ? ISO_RECORD_SUBMIT : ISO_RECORD_FENCE, work, work->len);
    if (!iso_chain_read(mem, &work->request->chain, SUBMIT_HEADER, payload, work->len)) {
        lane->cmd_head = head; /* not published yet, so it never was */
        lane->next_seq = seq;
        return ISO_PLACE_REFUSED;
    }
    lane->submits++;
    lane->submit_bytes += work->len;
    return ISO_PLACE_SENT;
}

static enum iso_place place_transfer(struct iso_lane *lane, struct iso_work *work, const struct iso_guestmem *mem)
{
    bool write = work->kind == ISO_WORK_TRANSFER_WRITE;
    if (work->transfer.len > lane->staging_bytes)
        return ISO_PLACE_REFUSED;
    if (!ring_room(lane, iso_ring_record_size(sizeof(work->transfer))))
        return ISO_PLACE_FULL;
    if (lane->staging_head == lane->staging_tail) /* empty: start over, so that whatever fits at all fits now */
        lane->staging_head = lane->staging_tail = 0;
    uint64_t head = lane->staging_head;
    if (!staging_take(lane, work->transfer.len, &work->transfer.offset))
        return ISO_PLACE_FULL;
    if (write && !iso_backing_read_rows(mem, work->backing, &work->rows, lane->staging + work->transfer.offset,
                                        work->transfer.stride, work->transfer.layer_stride)) {
        lane->staging_head = head;
        return ISO_PLACE_REFUSED;
    }
    uint8_t *payload = record_begin(lane, write ? ISO_RECORD_TRANSFER_WRITE : ISO_RECORD_TRANSFER_READ, work, sizeof(work->transfer));
    memcpy(payload, &work->transfer, sizeof(work->transfer));
    lane->transfers++;
    lane->transfer_bytes += work->transfer.len;
    remember(lane, work, lane->staging_head);
    return ISO_PLACE_PENDING;
}

static enum iso_place place_fence(struct iso_lane *lane, struct iso_work *work)
{
    if (!ring_room(lane, iso_ring_record_size(0)))
        return ISO_PLACE_FULL;
    record_begin(lane, ISO_RECORD_FENCE, work, 0);
    return ISO_PLACE_SENT;
}

static enum iso_place place_copy(struct iso_lane *lane, struct iso_work *work)
{
    const uint32_t type = work->kind == ISO_WORK_COPY_OUT ? ISO_RECORD_COPY_OUT : ISO_RECORD_COPY_IN;
    for (;;) {
        struct iso_copy copy = {.resource_id = work->transfer.resource_id};
        if (!ring_room(lane, iso_ring_record_size(sizeof(copy))))
            return ISO_PLACE_FULL; /* those placed stay placed */
        memcpy(record_begin(lane, type, work, sizeof(copy)), &copy, sizeof(copy));
        if (work->taken * sizeof(uint32_t) == work->len)
            return ISO_PLACE_SENT;
        memcpy(&work->transfer.resource_id, work->bytes + work->taken++ * sizeof(uint32_t), sizeof(uint32_t));
    }
}

static enum iso_place place_control(struct iso_lane *lane, struct iso_work *work)
{
    if (work->len > ISO_RING_MAX_PAYLOAD)
        return ISO_PLACE_REFUSED;
    if (!ring_room(lane, iso_ring_record_size(work->len)))
        return ISO_PLACE_FULL;
    memcpy(record_begin(lane, ISO_RECORD_CONTROL, work, work->len), work->bytes, work->len);
    return ISO_PLACE_SENT;
}

static enum iso_place place(struct iso_lane *lane, struct iso_work *work, const struct iso_guestmem *mem)
{
    switch (work->kind) {
    case ISO_WORK_SUBMIT:
        return place_stream(lane, work, mem);
    case ISO_WORK_CONTROL:
        return place_control(lane, work);
    case ISO_WORK_POINT:
        return place_fence(lane, work);
    case ISO_WORK_COPY_OUT:
    case ISO_WORK_COPY_IN:
        return place_copy(lane, work);
    default:
        return place_transfer(lane, work, mem);
    }
}

enum iso_place iso_lane_place(struct iso_lane *lane, struct iso_work *work, const struct iso_guestmem *mem)
{
    if (lane->lost)
        return ISO_PLACE_REFUSED;
    if (lane->pending_count == ISO_LANE_MAX_PENDING)
        return ISO_PLACE_FULL;
    enum iso_place placed = place(lane, work, mem);
    if (placed == ISO_PLACE_SENT && work->flags) {
        remember(lane, work, 0);
        placed = ISO_PLACE_PENDING;
    }
    if (placed == ISO_PLACE_SENT || placed == ISO_PLACE_PENDING)
        iso_history_note(&lane->history, work, lane->next_seq - 1, lane->cmd_head);
    return lane->lost ? ISO_PLACE_REFUSED : placed;
}

void iso_lane_backlog(struct iso_lane *lane, struct iso_work *work)
{
    work->next = NULL;
    if (lane->backlog_last)
        lane->backlog_last->next = work;
    else
        lane->backlog_first = work;
    lane->backlog_last = work;
    lane->backlog_count++;
}

void iso_lane_backlog_first(struct iso_lane *lane, struct iso_work *work)
{
    work->next = lane->backlog_first;
    lane->backlog_first = work;
    if (!lane->backlog_last)
        lane->backlog_last = work;
    lane->backlog_count++;
}

void iso_lane_backlog_remove(struct iso_lane *lane, struct iso_work *work)
{
    struct iso_work **at = &lane->backlog_first, *before = NULL;
    while (*at != work) {
        before = *at;
        at = &before->next;
    }
    *at = work->next;
    if (lane->backlog_last == work)
        lane->backlog_last = before;
    lane->backlog_count--;
}

bool iso_lane_is_blocked(const struct iso_lane *lane)
{
    const struct iso_work *first = lane->backlog_first;
    return first && (first->kind == ISO_WORK_SLOT || (first->kind == ISO_WORK_BARRIER && first->waiter->points));
}

bool iso_lane_trim(struct iso_lane *lane)
{
    if (lane->lost || lane->staging_head != lane->staging_tail || lane->staging_used <= STAGING_KEPT)
        return false;
    uint64_t keep = lane->staging_used > STAGING_KEPT + TRIM_BYTES ? lane->staging_used - TRIM_BYTES : STAGING_KEPT;
    keep &= ~(uint64_t)(STAGING_PAGE - 1);
    /* The pages leave the file, so the worker loses them too; what it writes there now is nobody's. */
    if (madvise(lane->staging + keep, lane->staging_used - keep, MADV_REMOVE) != 0)
        return false;
    lane->staging_used = keep;
    return keep > STAGING_KEPT;
}

void iso_lane_publish(struct iso_lane *lane)
{
    if (lane->published == lane->cmd_head || lane->lost)
        return;
    lane->published = lane->cmd_head;
    atomic_store(&lane->ring->cmd_head, lane->cmd_head);
    if (atomic_load(&lane->ring->worker_sleeping) && atomic_exchange(&lane->ring->worker_sleeping, 0))
        (void)!write(lane->doorbell_out, &(uint64_t){1}, sizeof(uint64_t));
}

bool iso_lane_want_room(struct iso_lane *lane)
{
    uint64_t before = lane->cmd_tail;
    atomic_store(&lane->ring->want_room, 1);
    return refresh_tail(lane) && lane->cmd_tail != before;
}

/* ---- completions ---- */

int iso_lane_completion(struct iso_lane *lane, struct iso_completion *out)
{
    if (lane->lost)
        return 0;
    for (int look = 0; look < 2; look++) {
        uint64_t head = atomic_load(&lane->ring->cpl_head);
        if (head < lane->cpl_tail || head - lane->cpl_tail > ISO_RING_CPL_ENTRIES)
            return -1;
        if (head != lane->cpl_tail) {
            if (look)
                atomic_store(&lane->ring->master_sleeping, 0);
            *out = *(volatile struct iso_completion *)&iso_ring_cpl_base(lane->ring)[lane->cpl_tail % ISO_RING_CPL_ENTRIES];
            atomic_store_explicit(&lane->ring->cpl_tail, ++lane->cpl_tail, memory_order_release);
            return 1;
        }
        atomic_store(&lane->ring->master_sleeping, 1);
    }
    return 0;
}

struct iso_pending *iso_lane_find(struct iso_lane *lane, uint64_t seq)
{
    uint32_t low = 0, high = lane->pending_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        struct iso_pending *pending = &lane->pending[(lane->pending_first + middle) % ISO_LANE_MAX_PENDING];
        if (pending->seq == seq)
            return pending->done ? NULL : pending;
        if (pending->seq < seq)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

void iso_lane_finish(struct iso_lane *lane, struct iso_pending *pending)
{
    pending->done = true;
    pending->work = NULL;
    while (lane->pending_count && lane->pending[lane->pending_first].done) {
        if (lane->pending[lane->pending_first].staging_end)
            lane->staging_tail = lane->pending[lane->pending_first].staging_end;
        lane->pending_first = (lane->pending_first + 1) % ISO_LANE_MAX_PENDING;
        lane->pending_count--;
    }
}
