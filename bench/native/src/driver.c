#include "driver.h"

#include "clock.h"

#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

/* virtio 1.3, 2.7.6 and 2.7.8 */
#define NO_NOTIFY 1u
/* virtio-gpu: struct virtio_gpu_ctrl_hdr */
#define HEADER_FENCE_ID 8
#define RESPONSE_CLASS 0xff00u
#define RESPONSE_OK 0x1100u

#define PATIENCE_NS 30000000000u

static uint16_t load(const uint16_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void store(uint16_t *word, uint16_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

/* ---- submitting ---- */

static void add(struct bench_driver *driver, uint32_t index)
{
    const struct bench_chain *chain = &driver->chains[index];
    if (chain->fenced) {
        memcpy(chain->request + HEADER_FENCE_ID, &driver->next_fence, sizeof(driver->next_fence));
        driver->next_fence++;
    }
    memset(chain->response, 0, sizeof(uint32_t));
    driver->avail[2 + (driver->next_avail & (driver->size - 1))] = chain->head;
    driver->next_avail++;
}

static void publish(struct bench_driver *driver)
{
    uint16_t old = driver->avail[1];
    store(&driver->avail[1], driver->next_avail);
    atomic_thread_fence(memory_order_seq_cst);
    bool wanted;
    if (driver->event_idx) {
        uint16_t event = load(&driver->used[2 + 4 * driver->size]);
        wanted = (uint16_t)(driver->next_avail - event - 1) < (uint16_t)(driver->next_avail - old);
    } else {
        wanted = !(load(&driver->used[0]) & NO_NOTIFY);
    }
    if (wanted) {
        driver->kicks++;
        (void)!write(driver->kick_fd, &(uint64_t){1}, sizeof(uint64_t));
    }
}

/* ---- completing ---- */

static uint16_t ready(const struct bench_driver *driver)
{
    return (uint16_t)(load(&driver->used[1]) - driver->last_used);
}

/* Until `wanted` chains came back. */
static enum bench_end wait_for(struct bench_driver *driver, uint16_t wanted)
{
    uint64_t deadline = 0;
    for (uint16_t seen; (seen = ready(driver)) < wanted;) {
        uint16_t after = driver->eager ? seen : wanted - 1;
        if (driver->event_idx)
            store(&driver->avail[2 + driver->size], (uint16_t)(driver->last_used + after));
        atomic_thread_fence(memory_order_seq_cst);
        if (ready(driver) > after)
            continue;
        uint64_t now = bench_now();
        deadline = deadline ? deadline : now + PATIENCE_NS;
        if (now >= deadline)
            return BENCH_TIMEOUT;
        driver->sleeps++;
        struct pollfd call = {.fd = driver->call_fd, .events = POLLIN};
        if (poll(&call, 1, (int)((deadline - now) / 1000000) + 1) == 1)
            (void)!read(driver->call_fd, &(uint64_t){0}, sizeof(uint64_t));
    }
    return BENCH_OK;
}

/* Takes one used element, which must be there. Returns its chain's index, or -1 for a head that is nobody's. */
static int32_t take(struct bench_driver *driver)
{
    uint32_t head;
    memcpy(&head, &driver->used[2 + 4 * (driver->last_used & (driver->size - 1))], sizeof(head));
    driver->last_used++;
    uint32_t index = head < driver->size ? driver->chain_of_head[head] : driver->count;
    return index < driver->count ? (int32_t)index : -1;
}

static enum bench_end check(struct bench_driver *driver, int32_t index)
{
    if (index < 0)
        return BENCH_BROKEN_RING;
    uint32_t type;
    memcpy(&type, driver->chains[index].response, sizeof(type));
    if ((type & RESPONSE_CLASS) == RESPONSE_OK)
        return BENCH_OK;
    driver->failed_type = type;
    driver->failed_chain = (uint32_t)index;
    return BENCH_FAILED_COMMAND;
}

static enum bench_end take_all(struct bench_driver *driver, uint32_t count)
{
    enum bench_end end = BENCH_OK;
    while (count--) {
        enum bench_end one = check(driver, take(driver));
        end = end == BENCH_OK ? one : end;
    }
    return end;
}

/* ---- the two ways of driving ---- */

static uint32_t next_position(struct bench_driver *driver)
{
    uint32_t index = driver->position;
    driver->position = index + 1 == driver->count ? 0 : index + 1;
    return index;
}

enum bench_end bench_drive_batches(struct bench_driver *driver, uint32_t batch, uint64_t duration_ns, uint64_t *latencies,
                                   uint64_t capacity, struct bench_run *run)
{
    uint64_t start = bench_now(), now = start;
    *run = (struct bench_run){0};
    do {
        for (uint32_t i = 0; i < batch; i++)
            add(driver, next_position(driver));
        uint64_t kicked = now;
        publish(driver);
        enum bench_end end = wait_for(driver, (uint16_t)batch);
        if (end == BENCH_OK)
            end = take_all(driver, batch);
        if (end != BENCH_OK)
            return end;
        now = bench_now();
        if (latencies && run->latency_count < capacity)
            latencies[run->latency_count++] = now - kicked;
        run->commands += batch;
    } while (now - start < duration_ns || driver->position);
    run->elapsed_ns = now - start;
    return BENCH_OK;
}

enum bench_end bench_drive_window(struct bench_driver *driver, uint32_t depth, uint64_t duration_ns, struct bench_run *run)
{
    uint64_t start = bench_now(), now = start;
    uint32_t outstanding = depth;
    enum bench_end first = BENCH_OK;
    *run = (struct bench_run){0};
    for (uint32_t i = 0; i < depth; i++)
        add(driver, i);
    publish(driver);
    while (outstanding) {
        uint32_t half = (depth + 1) / 2;
        enum bench_end end = wait_for(driver, (uint16_t)(outstanding < half ? outstanding : half));
        if (end != BENCH_OK)
            return end;
        now = bench_now();
        bool again = first == BENCH_OK && now - start < duration_ns;
        for (uint32_t count = ready(driver); count; count--) {
            int32_t index = take(driver);
            end = check(driver, index);
            if (end == BENCH_BROKEN_RING)
                return end;
            first = first == BENCH_OK ? end : first;
            run->commands++;
            if (again)
                add(driver, (uint32_t)index);
            else
                outstanding--;
        }
        if (again)
            publish(driver);
    }
    run->elapsed_ns = now - start;
    return first;
}
