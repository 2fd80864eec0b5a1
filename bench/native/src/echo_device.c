#include "echo_device.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define OK_NODATA 0x1100u
#define RESPONSE_BYTES 24u

struct descriptor {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
};

struct used_element {
    uint32_t id, len;
};

/* Writes an empty response to the last descriptor of the chain's indirect table. */
static void answer(const struct bench_echo *echo, uint16_t head)
{
    struct descriptor ring, last;
    memcpy(&ring, echo->memory + echo->desc + sizeof(ring) * head, sizeof(ring));
    memcpy(&last, echo->memory + ring.addr + ring.len - sizeof(last), sizeof(last));
    uint32_t response[RESPONSE_BYTES / sizeof(uint32_t)] = {OK_NODATA};
    memcpy(echo->memory + last.addr, response, sizeof(response));
}

static void serve(const struct bench_echo *echo)
{
    uint16_t *avail = (uint16_t *)(void *)(echo->memory + echo->avail);
    uint16_t *used = (uint16_t *)(void *)(echo->memory + echo->used);
    uint16_t taken = __atomic_load_n(&avail[1], __ATOMIC_ACQUIRE), mask = (uint16_t)(echo->size - 1);
    for (;;) {
        uint16_t until = __atomic_load_n(&avail[1], __ATOMIC_ACQUIRE), old = taken;
        for (; taken != until; taken++) {
            uint16_t head = avail[2 + (taken & mask)];
            answer(echo, head);
            memcpy(&used[2 + 4 * (taken & mask)], &(struct used_element){head, RESPONSE_BYTES}, sizeof(struct used_element));
        }
        __atomic_store_n(&used[1], taken, __ATOMIC_RELEASE);
        __atomic_store_n(&used[2 + 4 * echo->size], taken, __ATOMIC_RELEASE);
        atomic_thread_fence(memory_order_seq_cst);
        uint16_t event = __atomic_load_n(&avail[2 + echo->size], __ATOMIC_ACQUIRE);
        if ((uint16_t)(taken - event - 1) < (uint16_t)(taken - old))
            (void)!write(echo->call_fd, &(uint64_t){1}, sizeof(uint64_t));
        if (__atomic_load_n(&avail[1], __ATOMIC_ACQUIRE) == taken)
            (void)!read(echo->kick_fd, &(uint64_t){0}, sizeof(uint64_t));
    }
}

pid_t bench_echo_start(const struct bench_echo *echo)
{
    pid_t parent = getpid(), pid = fork();
    if (pid)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() == parent)
        serve(echo);
    _exit(0);
}
