/* What Python sees of bench/native/src; the meaning stands in the headers there. */

struct bench_chain {
    uint16_t head;
    bool fenced;
    uint8_t *request, *response;
};
struct bench_driver {
    uint16_t *avail, *used;
    uint32_t size;
    bool event_idx, eager;
    int kick_fd, call_fd;
    uint16_t next_avail, last_used;
    struct bench_chain *chains;
    uint32_t count, position;
    uint16_t *chain_of_head;
    uint64_t next_fence, kicks, sleeps;
    uint32_t failed_type, failed_chain;
    ...;
};
struct bench_run {
    uint64_t commands, elapsed_ns, latency_count;
};
#define BENCH_OK ...
#define BENCH_TIMEOUT ...
#define BENCH_FAILED_COMMAND ...
#define BENCH_BROKEN_RING ...
int bench_drive_batches(struct bench_driver *driver, uint32_t batch, uint64_t duration_ns, uint64_t *latencies,
                        uint64_t capacity, struct bench_run *run);
int bench_drive_window(struct bench_driver *driver, uint32_t depth, uint64_t duration_ns, struct bench_run *run);

struct bench_echo {
    uint8_t *memory;
    uint64_t desc, avail, used;
    uint32_t size;
    int kick_fd, call_fd;
};
int bench_echo_start(const struct bench_echo *echo);
int bench_sink_start(int socket);

uint64_t bench_copy(uint8_t *to, uint64_t to_size, const uint8_t *from, uint64_t from_size, uint64_t length,
                    uint64_t duration_ns, uint64_t *elapsed_ns);
int64_t bench_round_trips(uint64_t duration_ns, uint64_t *latencies, uint64_t capacity);
