#include "yardsticks.h"

#include "clock.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* The clock is read once for about so many bytes. */
#define BYTES_BETWEEN_CLOCKS (256u * 1024)

uint64_t bench_copy(uint8_t *to, uint64_t to_size, const uint8_t *from, uint64_t from_size, uint64_t length,
                    uint64_t duration_ns, uint64_t *elapsed_ns)
{
    uint64_t copies = 0, to_at = 0, from_at = 0, start = bench_now(), now;
    uint64_t between = length < BYTES_BETWEEN_CLOCKS ? BYTES_BETWEEN_CLOCKS / length : 1;
    do {
        for (uint64_t i = 0; i < between; i++) {
            memcpy(to + to_at, from + from_at, length);
            to_at = to_at + 2 * length > to_size ? 0 : to_at + length;
            from_at = from_at + 2 * length > from_size ? 0 : from_at + length;
        }
        copies += between;
        now = bench_now();
    } while (now - start < duration_ns);
    *elapsed_ns = now - start;
    return copies;
}

static void echo(int in, int out)
{
    uint64_t value;
    while (read(in, &value, sizeof(value)) == sizeof(value))
        (void)!write(out, &(uint64_t){1}, sizeof(uint64_t));
}

static int64_t measure(int out, int in, uint64_t duration_ns, uint64_t *latencies, uint64_t capacity)
{
    uint64_t start = bench_now(), before = start, value;
    int64_t count = 0;
    while ((uint64_t)count < capacity && before - start < duration_ns) {
        (void)!write(out, &(uint64_t){1}, sizeof(uint64_t));
        (void)!read(in, &value, sizeof(value));
        uint64_t after = bench_now();
        latencies[count++] = after - before;
        before = after;
    }
    return count;
}

int64_t bench_round_trips(uint64_t duration_ns, uint64_t *latencies, uint64_t capacity)
{
    int there = eventfd(0, EFD_CLOEXEC), back = eventfd(0, EFD_CLOEXEC), failure = 0;
    int64_t count = -1;
    pid_t parent = getpid(), pid = there < 0 || back < 0 ? -1 : fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() == parent)
            echo(there, back);
        _exit(0);
    }
    if (pid > 0) {
        count = measure(there, back, duration_ns, latencies, capacity);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    } else {
        failure = errno;
    }
    close(there);
    close(back);
    errno = failure;
    return count;
}
