/*
 * The driver's side of a split virtqueue, as fast as it goes: descriptor chains are prepared once and submitted again and
 * again, by an entry in the available ring each. So what is measured is the device and not its driver.
 *
 * A driver and the rings it was given belong to one thread. Chains must not be outstanding between calls.
 */
#ifndef ISOREND_BENCH_DRIVER_H
#define ISOREND_BENCH_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

/* A prepared chain. `request` and `response` point to virtio-gpu headers in guest memory. */
struct bench_chain {
    uint16_t head;
    bool fenced; /* gets a new fence id each time */
    uint8_t *request, *response;
};

struct bench_driver {
    uint16_t *avail; /* flags, idx, ring[size], used_event */
    uint16_t *used;  /* flags, idx, ring of {u32 id, u32 len}[size], avail_event */
    uint32_t size;   /* a power of two */
    bool event_idx;
    bool eager; /* asks for a call at the first completion, as Linux does, not at the last that it waits for */
    int kick_fd, call_fd;
    uint16_t next_avail, last_used; /* free running, as in the rings */

    struct bench_chain *chains;
    uint32_t count;    /* of them, at most `size` */
    uint32_t position; /* the chain that goes next */
    uint16_t *chain_of_head; /* [size] */

    uint64_t next_fence;
    uint64_t kicks, sleeps;   /* eventfd writes, and waits for one */
    uint32_t failed_type;     /* the first response that was no success; 0 if all were */
    uint32_t failed_chain;
};

/* How much was done. `elapsed_ns` runs to the last completion. */
struct bench_run {
    uint64_t commands, elapsed_ns;
    uint64_t latency_count; /* of the values that were written to `latencies` */
};

enum bench_end { BENCH_OK, BENCH_TIMEOUT, BENCH_FAILED_COMMAND, BENCH_BROKEN_RING };

/*
 * `batch` commands with one kick, all waited for, then the next `batch`, for at least `duration_ns` and until the last chain
 * had its turn, so that a cycle of commands ends as it began. Writes each batch's time, from its first entry in the ring to
 * its last completion, to `latencies` (nanoseconds, up to `capacity` of them) unless that is NULL.
 */
enum bench_end bench_drive_batches(struct bench_driver *driver, uint32_t batch, uint64_t duration_ns, uint64_t *latencies,
                                   uint64_t capacity, struct bench_run *run);
/*
 * Keeps `depth` chains outstanding: whenever half of them or more came back, these go again with one kick. After a
 * refused command none is sent any more.
 */
enum bench_end bench_drive_window(struct bench_driver *driver, uint32_t depth, uint64_t duration_ns, struct bench_run *run);

#endif
