/* Bare costs on this machine: copying memory, and waking another process. */
#ifndef ISOREND_BENCH_YARDSTICKS_H
#define ISOREND_BENCH_YARDSTICKS_H

#include <stdint.h>

/*
 * Copies `length` bytes at a time for at least `duration_ns`, from one place after the other of `from` to one after the
 * other of `to` (sizes in bytes, no less than length). Returns the copies made; writes how long that took.
 */
uint64_t bench_copy(uint8_t *to, uint64_t to_size, const uint8_t *from, uint64_t from_size, uint64_t length,
                    uint64_t duration_ns, uint64_t *elapsed_ns);
/*
 * Round trips to another process and back, by two eventfds that both sides block on, for at least `duration_ns`. Writes up
 * to `capacity` times in nanoseconds. Returns their number, or -1 with errno if the process could not be made.
 */
int64_t bench_round_trips(uint64_t duration_ns, uint64_t *latencies, uint64_t capacity);

#endif
