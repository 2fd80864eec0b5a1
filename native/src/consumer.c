#include "consumer.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "sealed_memory.h"

#define CMD_MASK (ISO_RING_CMD_BYTES - 1)
#define MAX_FAILED 1024u       /* failed records whose fences are under way; beyond that they are completed out of order */
#define BUSY_CHECK_INTERVAL 64 /* records between two looks at the descriptors while the ring never runs empty */
#define FAULT_INTERVAL_NS 1000000000ull
#define PATIENCE_NS 50000ull   /* for a fence with nothing behind it; a wait of virglrenderer's thread costs 10 to 30 us */

struct failed_fence {
    uint64_t seq;
    uint32_t status;
};

struct iso_consumer {
    struct iso_ring_header *ring;
    uint8_t *staging;
    uint64_t staging_bytes;
    int worker_doorbell, master_doorbell, channel_fd;
    int engine_fd; /* -1: the engine has none */
    int epoll_fd;  /* for all of them */
    struct iso_engine *engine;

    /* Of the consumer's thread alone. */
    uint64_t tail;
    uint64_t last_seq;
    struct iso_record open; /* the control record Python is at; size 0 when none */
    uint64_t faults_told, fault_told_ns;
    uint32_t records_since_check;
    char broken[ISO_FAULT_TEXT];

    pthread_mutex_t lock;
    uint64_t cpl_head; /* the rest: under lock */
    uint64_t pending;  /* fences created and not completed */
    uint32_t failed_count;
    struct failed_fence failed[MAX_FAILED];
    bool completions_broken;

    _Atomic bool gone; /* the master hung up */
    _Atomic uint64_t doorbells;
    struct iso_consumer_statistics statistics;
};

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

__attribute__((format(printf, 2, 3))) static bool broken(struct iso_consumer *consumer, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(consumer->broken, sizeof(consumer->broken), format, arguments);
    va_end(arguments);
    return false;
}

/* Doorbells. An eventfd that is full has been rung already. */

static void ring_master(struct iso_consumer *consumer)
{
    const uint64_t one = 1;

    atomic_fetch_add(&consumer->doorbells, 1);
    while (write(consumer->master_doorbell, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

static void drain_doorbell(int fd)
{
    uint64_t count;

    while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
        ;
}

/* Completions. */

/* With the completion ring full there is nothing to do but to wait for the master, as long as there is one. */
static bool wait_for_completion_room(struct iso_consumer *consumer)
{
    struct pollfd channel = {.fd = consumer->channel_fd, .events = POLLRDHUP};

    for (;;) {
        uint64_t used = consumer->cpl_head - atomic_load(&consumer->ring->cpl_tail);
        if (used > ISO_RING_CPL_ENTRIES) {
            consumer->completions_broken = true;
            return false;
        }
        if (used < ISO_RING_CPL_ENTRIES)
            return true;
        ring_master(consumer);
        if (poll(&channel, 1, 1) > 0)
            atomic_store(&consumer->gone, true);
        if (atomic_load(&consumer->gone))
            return false;
    }
}

static void push_completion(struct iso_consumer *consumer, uint64_t seq, uint32_t status)
{
    if (!wait_for_completion_room(consumer))
        return;
    iso_ring_cpl_base(consumer->ring)[consumer->cpl_head % ISO_RING_CPL_ENTRIES] =
        (struct iso_completion){.seq = seq, .status = status};
    consumer->cpl_head++;
    consumer->statistics.completions++;
    atomic_store(&consumer->ring->cpl_head, consumer->cpl_head);
    if (atomic_load(&consumer->ring->master_sleeping) && atomic_exchange(&consumer->ring->master_sleeping, 0))
        ring_master(consumer);
}

static void complete(struct iso_consumer *consumer, uint64_t seq, uint32_t status)
{
    pthread_mutex_lock(&consumer->lock);
    push_completion(consumer, seq, status);
    pthread_mutex_unlock(&consumer->lock);
}

static uint32_t take_failed_status(struct iso_consumer *consumer, uint64_t seq)
{
    for (uint32_t i = 0; i < consumer->failed_count; i++) {
        if (consumer->failed[i].seq != seq)
            continue;
        uint32_t status = consumer->failed[i].status;
        consumer->failed[i] = consumer->failed[--consumer->failed_count];
        return status;
    }
    return ISO_STATUS_OK;
}

static void fence_done(void *cookie, uint64_t seq)
{
    struct iso_consumer *consumer = cookie;

    pthread_mutex_lock(&consumer->lock);
    consumer->pending--;
    push_completion(consumer, seq, take_failed_status(consumer, seq));
    pthread_mutex_unlock(&consumer->lock);
}

/* Whether nothing stands behind the record being executed. */
static bool is_last(struct iso_consumer *consumer, const struct iso_record *record)
{
    return atomic_load(&consumer->ring->cmd_head) == consumer->tail + record->size;
}

/* A failed record gets a fence all the same: its completion must not overtake those before it. */
static void create_fence(struct iso_consumer *consumer, const struct iso_record *record, uint32_t status)
{
    const uint64_t seq = record->seq, patience = is_last(consumer, record) ? PATIENCE_NS : 0;
    bool ordered = true;

    pthread_mutex_lock(&consumer->lock);
    if (status != ISO_STATUS_OK) {
        ordered = consumer->failed_count < MAX_FAILED;
        if (ordered)
            consumer->failed[consumer->failed_count++] = (struct failed_fence){.seq = seq, .status = status};
    }
    consumer->pending += ordered;
    pthread_mutex_unlock(&consumer->lock);
    consumer->statistics.fences++;

    if (ordered && consumer->engine->ops->create_fence(consumer->engine, record->ctx_id, record->ring_idx, seq, patience) ==
                       ISO_STATUS_OK)
        return;

    pthread_mutex_lock(&consumer->lock);
    if (ordered) {
        consumer->pending--;
        take_failed_status(consumer, seq);
    }
    push_completion(consumer, seq, status == ISO_STATUS_OK ? ISO_STATUS_FAILED : status);
    pthread_mutex_unlock(&consumer->lock);
}

static void answer(struct iso_consumer *consumer, const struct iso_record *record, uint32_t status)
{
    if (record->flags & ISO_FLAG_FENCE)
        create_fence(consumer, record, status);
    else if (record->flags & ISO_FLAG_COMPLETE)
        complete(consumer, record->seq, status);
}

/* Records. */

static uint64_t used_bytes(struct iso_consumer *consumer)
{
    return atomic_load(&consumer->ring->cmd_head) - consumer->tail;
}

static void tell_room(struct iso_consumer *consumer)
{
    if (!atomic_load(&consumer->ring->want_room) || used_bytes(consumer) > ISO_RING_CMD_BYTES / 2)
        return;
    if (atomic_exchange(&consumer->ring->want_room, 0))
        ring_master(consumer);
}

static void advance(struct iso_consumer *consumer, uint32_t size)
{
    consumer->tail += size;
    atomic_store(&consumer->ring->cmd_tail, consumer->tail);
    tell_room(consumer);
}

static bool check_record(struct iso_consumer *consumer, const struct iso_record *record, uint64_t available)
{
    const uint64_t to_end = ISO_RING_CMD_BYTES - (consumer->tail & CMD_MASK);

    if (record->size < sizeof(*record) || record->size % ISO_RING_RECORD_ALIGN)
        return broken(consumer, "record of %u bytes", record->size);
    if (record->size > available || record->size > to_end)
        return broken(consumer, "record of %u bytes with %llu produced and %llu to the end of the ring", record->size,
                      (unsigned long long)available, (unsigned long long)to_end);
    if (record->type == ISO_RECORD_PAD)
        return record->size == to_end || broken(consumer, "padding of %u bytes, %llu to the end of the ring", record->size,
                                                (unsigned long long)to_end);
    if (record->size > ISO_RING_MAX_RECORD)
        return broken(consumer, "record of %u bytes", record->size);
    if (record->payload_len > record->size - sizeof(*record))
        return broken(consumer, "payload of %u bytes in a record of %u", record->payload_len, record->size);
    if (record->flags & ~(uint32_t)(ISO_FLAG_COMPLETE | ISO_FLAG_FENCE))
        return broken(consumer, "record flags 0x%x", record->flags);
    if (record->seq <= consumer->last_seq)
        return broken(consumer, "sequence number %llu after %llu", (unsigned long long)record->seq,
                      (unsigned long long)consumer->last_seq);
    return true;
}

static uint32_t execute_transfer(struct iso_consumer *consumer, const struct iso_record *record, const uint8_t *payload)
{
    const struct iso_engine_ops *ops = consumer->engine->ops;
    struct iso_transfer transfer;
    uint8_t *staging;

    consumer->statistics.transfers++;
    if (record->payload_len != sizeof(transfer))
        return ISO_STATUS_INVALID_PARAMETER;
    memcpy(&transfer, payload, sizeof(transfer));
    staging = iso_consumer_staging(consumer, transfer.offset, transfer.len);
    if (!staging)
        return ISO_STATUS_INVALID_PARAMETER;
    if (record->type == ISO_RECORD_TRANSFER_WRITE)
        return ops->transfer_write(consumer->engine, record->ctx_id, &transfer, staging);
    return ops->transfer_read(consumer->engine, record->ctx_id, &transfer, staging);
}

static uint32_t execute_copy(struct iso_consumer *consumer, const struct iso_record *record, const uint8_t *payload)
{
    const struct iso_engine_ops *ops = consumer->engine->ops;
    struct iso_copy copy;

    consumer->statistics.copies++;
    if (record->payload_len != sizeof(copy))
        return ISO_STATUS_INVALID_PARAMETER;
    memcpy(&copy, payload, sizeof(copy));
    if (record->type == ISO_RECORD_COPY_OUT)
        return ops->copy_out(consumer->engine, record->ctx_id, copy.resource_id);
    return ops->copy_in(consumer->engine, record->ctx_id, copy.resource_id);
}

static bool execute(struct iso_consumer *consumer, const struct iso_record *record, const uint8_t *payload, uint32_t *status)
{
    switch (record->type) {
    case ISO_RECORD_SUBMIT:
        consumer->statistics.submits++;
        *status = consumer->engine->ops->submit(consumer->engine, record->ctx_id, payload, record->payload_len);
        return true;
    case ISO_RECORD_TRANSFER_WRITE:
    case ISO_RECORD_TRANSFER_READ:
        *status = execute_transfer(consumer, record, payload);
        return true;
    case ISO_RECORD_COPY_OUT:
    case ISO_RECORD_COPY_IN:
        *status = execute_copy(consumer, record, payload);
        return true;
    case ISO_RECORD_FENCE:
        *status = ISO_STATUS_OK;
        return true;
    default:
        return broken(consumer, "record of type %u", record->type);
    }
}

/* Sleeping. */

static int poll_timeout(struct iso_consumer *consumer)
{
    bool pending;

    if (consumer->engine_fd >= 0)
        return -1;
    pthread_mutex_lock(&consumer->lock);
    pending = consumer->pending > 0;
    pthread_mutex_unlock(&consumer->lock);
    return pending ? 1 : -1;
}

/* Look at the descriptors for at most timeout_ms (-1: until one is ready or the engine wants its poll). */
static void look_around(struct iso_consumer *consumer, int timeout_ms)
{
    struct epoll_event events[3];
    bool engine_calls = consumer->engine_fd < 0;

    if (timeout_ms < 0)
        timeout_ms = poll_timeout(consumer);
    int count = epoll_wait(consumer->epoll_fd, events, 3, timeout_ms);
    if (count < 0)
        return;
    for (int i = 0; i < count; i++) {
        if (events[i].data.fd == consumer->worker_doorbell)
            drain_doorbell(consumer->worker_doorbell);
        else if (events[i].data.fd == consumer->channel_fd)
            atomic_store(&consumer->gone, true);
        else
            engine_calls = true;
    }
    if (engine_calls)
        consumer->engine->ops->poll(consumer->engine);
}

static void sleep_until_rung(struct iso_consumer *consumer)
{
    atomic_store(&consumer->ring->worker_sleeping, 1);
    if (used_bytes(consumer) == 0) {
        tell_room(consumer);
        consumer->statistics.sleeps++;
        look_around(consumer, -1);
    }
    atomic_store(&consumer->ring->worker_sleeping, 0);
}

/* The loop. */

static uint32_t wake(struct iso_wake_event *event, enum iso_wake reason, const char *text)
{
    memset(event, 0, sizeof(*event));
    event->reason = reason;
    snprintf(event->text, sizeof(event->text), "%s", text);
    return reason;
}

static bool fault_is_due(struct iso_consumer *consumer, struct iso_wake_event *event)
{
    struct iso_engine *engine = consumer->engine;

    if (engine->faults == consumer->faults_told)
        return false;
    uint64_t now = now_ns();
    if (consumer->fault_told_ns && now - consumer->fault_told_ns < FAULT_INTERVAL_NS)
        return false;
    wake(event, ISO_WAKE_FAULT, engine->fault_text);
    event->faults = engine->faults - consumer->faults_told;
    consumer->faults_told = engine->faults;
    consumer->fault_told_ns = now;
    return true;
}

static void open_control(struct iso_consumer *consumer, const struct iso_record *record, struct iso_wake_event *event)
{
    consumer->open = *record;
    wake(event, ISO_WAKE_CONTROL, "");
    event->flags = record->flags;
    event->seq = record->seq;
    event->ring_idx = record->ring_idx;
    event->ctx_id = record->ctx_id;
    event->payload_len = record->payload_len;
    event->payload = iso_ring_cmd_base(consumer->ring) + (consumer->tail & CMD_MASK) + sizeof(*record);
}

/* One record: false when the loop has to end, with event filled. */
static bool step(struct iso_consumer *consumer, uint64_t available, struct iso_wake_event *event)
{
    const uint8_t *at = iso_ring_cmd_base(consumer->ring) + (consumer->tail & CMD_MASK);
    struct iso_record record;
    uint32_t status = ISO_STATUS_FAILED;

    memcpy(&record, at, sizeof(record));
    if (!check_record(consumer, &record, available))
        return wake(event, ISO_WAKE_BROKEN, consumer->broken) == 0;
    if (record.type == ISO_RECORD_PAD) {
        advance(consumer, record.size);
        return true;
    }
    consumer->last_seq = record.seq;
    consumer->statistics.records++;
    atomic_store(&consumer->ring->begun, record.seq);
    if (record.type == ISO_RECORD_CONTROL) {
        open_control(consumer, &record, event);
        return false;
    }
    if (!execute(consumer, &record, at + sizeof(record), &status))
        return wake(event, ISO_WAKE_BROKEN, consumer->broken) == 0;
    answer(consumer, &record, status);
    advance(consumer, record.size);
    return !fault_is_due(consumer, event);
}

static bool may_go_on(struct iso_consumer *consumer, struct iso_wake_event *event)
{
    bool completions_broken;

    if (atomic_load(&consumer->gone))
        return wake(event, ISO_WAKE_HANGUP, "the master hung up") == 0;
    pthread_mutex_lock(&consumer->lock);
    completions_broken = consumer->completions_broken;
    pthread_mutex_unlock(&consumer->lock);
    if (completions_broken)
        return wake(event, ISO_WAKE_BROKEN, "impossible index in the completion ring") == 0;
    return !fault_is_due(consumer, event);
}

uint32_t iso_consumer_run(struct iso_consumer *consumer, struct iso_wake_event *event)
{
    if (consumer->open.size)
        return wake(event, ISO_WAKE_BROKEN, "a control record is still open");
    for (;;) {
        uint64_t available = used_bytes(consumer);

        if (available == 0) {
            consumer->records_since_check = 0;
            if (!may_go_on(consumer, event))
                return event->reason;
            sleep_until_rung(consumer);
            continue;
        }
        if (available > ISO_RING_CMD_BYTES || available % ISO_RING_RECORD_ALIGN)
            return wake(event, ISO_WAKE_BROKEN, "impossible index in the command ring");
        if (++consumer->records_since_check >= BUSY_CHECK_INTERVAL) {
            consumer->records_since_check = 0;
            look_around(consumer, 0);
        }
        if (!may_go_on(consumer, event) || !step(consumer, available, event))
            return event->reason;
    }
}

int iso_consumer_finish(struct iso_consumer *consumer, uint32_t status)
{
    struct iso_record record = consumer->open;

    if (!record.size)
        return -1;
    consumer->open.size = 0;
    answer(consumer, &record, status);
    advance(consumer, record.size);
    return 0;
}

int iso_consumer_drain(struct iso_consumer *consumer, int timeout_ms)
{
    const uint64_t deadline = now_ns() + (uint64_t)timeout_ms * 1000000ull;

    for (;;) {
        pthread_mutex_lock(&consumer->lock);
        bool done = consumer->pending == 0;
        pthread_mutex_unlock(&consumer->lock);
        if (done)
            return 0;
        if (atomic_load(&consumer->gone) || now_ns() > deadline)
            return -1;
        look_around(consumer, 1);
    }
}

uint8_t *iso_consumer_staging(struct iso_consumer *consumer, uint64_t offset, uint64_t len)
{
    if (offset > consumer->staging_bytes || len > consumer->staging_bytes - offset)
        return NULL;
    return consumer->staging + offset;
}

void iso_consumer_statistics(struct iso_consumer *consumer, struct iso_consumer_statistics *statistics)
{
    pthread_mutex_lock(&consumer->lock);
    *statistics = consumer->statistics;
    pthread_mutex_unlock(&consumer->lock);
    statistics->doorbells = atomic_load(&consumer->doorbells);
}

/* Memory. */

static bool is_our_ring(const struct iso_ring_header *ring)
{
    return ring->magic == ISO_RING_MAGIC && ring->version == ISO_RING_VERSION && ring->cmd_bytes == ISO_RING_CMD_BYTES &&
           ring->cpl_entries == ISO_RING_CPL_ENTRIES;
}

static bool map_memory(struct iso_consumer *consumer, int ring_fd, int staging_fd)
{
    uint64_t ring_bytes;

    consumer->ring = iso_map_sealed(ring_fd, ISO_RING_TOTAL_BYTES, false, &ring_bytes);
    if (!consumer->ring)
        return false;
    if (is_our_ring(consumer->ring)) {
        consumer->staging = iso_map_sealed(staging_fd, 1, false, &consumer->staging_bytes);
        if (consumer->staging)
            return true;
    } else {
        errno = EPROTO;
    }
    int error = errno;
    munmap(consumer->ring, ISO_RING_TOTAL_BYTES);
    errno = error;
    return false;
}

static void unmap_memory(struct iso_consumer *consumer)
{
    munmap(consumer->ring, ISO_RING_TOTAL_BYTES);
    munmap(consumer->staging, (size_t)consumer->staging_bytes);
}

static bool listen_to(struct iso_consumer *consumer, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};

    return epoll_ctl(consumer->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

/*
 * Messages that wait on the channel, descriptors with them, are read when a control record says so; only its end matters
 * here, which EPOLLRDHUP tells whatever else is there to be read.
 */
static bool listen_to_all(struct iso_consumer *consumer)
{
    consumer->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (consumer->epoll_fd < 0)
        return false;
    if (listen_to(consumer, consumer->worker_doorbell, EPOLLIN) && listen_to(consumer, consumer->channel_fd, EPOLLRDHUP) &&
        (consumer->engine_fd < 0 || listen_to(consumer, consumer->engine_fd, EPOLLIN)))
        return true;
    int error = errno;
    close(consumer->epoll_fd);
    errno = error;
    return false;
}

struct iso_consumer *iso_consumer_new(int ring_fd, int staging_fd, int worker_doorbell, int master_doorbell, int channel_fd,
                                      struct iso_engine *engine)
{
    struct iso_consumer *consumer = calloc(1, sizeof(*consumer));

    if (!consumer)
        return NULL;
    if (!map_memory(consumer, ring_fd, staging_fd)) {
        int error = errno;
        free(consumer);
        errno = error;
        return NULL;
    }
    consumer->worker_doorbell = worker_doorbell;
    consumer->master_doorbell = master_doorbell;
    consumer->channel_fd = channel_fd;
    consumer->engine_fd = engine->ops->poll_fd(engine);
    if (!listen_to_all(consumer)) {
        int error = errno;
        unmap_memory(consumer);
        free(consumer);
        errno = error;
        return NULL;
    }
    pthread_mutex_init(&consumer->lock, NULL);
    consumer->tail = atomic_load(&consumer->ring->cmd_tail);
    consumer->cpl_head = atomic_load(&consumer->ring->cpl_head);
    consumer->engine = engine;
    engine->fence_done = fence_done;
    engine->cookie = consumer;
    return consumer;
}

void iso_consumer_free(struct iso_consumer *consumer)
{
    if (!consumer)
        return;
    close(consumer->epoll_fd);
    unmap_memory(consumer);
    pthread_mutex_destroy(&consumer->lock);
    free(consumer);
}
