/*
 * A device that does nothing: a process that answers every chain with OK_NODATA and gives it back. What a driver gets done
 * with it is what virtqueues and eventfds between two processes allow at most.
 */
#ifndef ISOREND_BENCH_ECHO_DEVICE_H
#define ISOREND_BENCH_ECHO_DEVICE_H

#include <stdint.h>
#include <sys/types.h>

/* Guest memory is one mapping, and guest addresses are offsets into it. All chains are indirect, event-idx is on. */
struct bench_echo {
    uint8_t *memory;
    uint64_t desc, avail, used; /* offsets of the rings */
    uint32_t size;
    int kick_fd, call_fd; /* the kick eventfd blocks */
};

/* Starts the process, which ends with the calling thread. Returns its id, or -1 with errno. */
pid_t bench_echo_start(const struct bench_echo *echo);

#endif
