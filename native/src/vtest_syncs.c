#include "vtest_syncs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "vtest_protocol.h"

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void unref(struct iso_sync *sync)
{
    if (!--sync->references)
        free(sync);
}

struct iso_sync *iso_sync_new(struct iso_syncs *syncs, uint64_t value)
{
    struct iso_sync *sync;

    if (syncs->map.used >= ISO_VTEST_MAX_SYNCS) {
        errno = EDQUOT;
        return NULL;
    }
    sync = malloc(sizeof(*sync));
    if (!sync)
        return NULL;
    do {
        syncs->next_id = syncs->next_id >= INT32_MAX ? 1 : syncs->next_id + 1;
    } while (iso_idmap_get(&syncs->map, syncs->next_id));
    *sync = (struct iso_sync){.id = syncs->next_id, .references = 1, .value = value};
    if (!iso_idmap_put(&syncs->map, sync->id, sync)) {
        free(sync);
        errno = ENOMEM;
        return NULL;
    }
    return sync;
}

struct iso_sync *iso_sync_get(const struct iso_syncs *syncs, uint32_t id)
{
    return iso_idmap_get(&syncs->map, id);
}

void iso_sync_drop(struct iso_syncs *syncs, uint32_t id)
{
    struct iso_sync *sync = iso_idmap_remove(&syncs->map, id);

    if (sync)
        unref(sync);
}

/* Points. */

static uint64_t value_of(const uint32_t *point)
{
    return point[1] | (uint64_t)point[2] << 32;
}

/* Resolves points and takes a reference of each sync. False, with nothing taken, when one is unknown. */
static bool take_points(struct iso_syncs *syncs, const uint32_t *words, uint32_t count, struct iso_sync_point *points)
{
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t *word = words + (size_t)i * ISO_VTEST_SYNC_WORDS;
        struct iso_sync *sync = iso_sync_get(syncs, word[0]);
        if (!sync) {
            while (i-- > 0)
                unref(points[i].sync);
            errno = ENOENT;
            return false;
        }
        sync->references++;
        points[i] = (struct iso_sync_point){.sync = sync, .value = value_of(word)};
    }
    return true;
}

static void drop_points(struct iso_sync_point *points, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (points[i].sync)
            unref(points[i].sync);
}

/* Waits. */

static void free_wait(struct iso_sync_wait *wait)
{
    drop_points(wait->points, wait->count);
    close(wait->fd);
    free(wait);
}

/* Drops the points that are reached. True when the wait is over. */
static bool is_over(struct iso_sync_wait *wait)
{
    for (uint32_t i = 0; i < wait->count && wait->left; i++) {
        struct iso_sync_point *point = &wait->points[i];
        if (!point->sync || point->sync->value < point->value)
            continue;
        unref(point->sync);
        point->sync = NULL;
        wait->left--;
    }
    return !wait->left;
}

/* Ends the waits that are over, and forgets those whose time is. */
static void look_at_waits(struct iso_syncs *syncs)
{
    struct iso_sync_wait **at = &syncs->waits;
    uint64_t now = now_ns();

    while (*at) {
        struct iso_sync_wait *wait = *at;
        bool over = is_over(wait);
        if (!over && wait->until_ns > now) {
            at = &wait->next;
            continue;
        }
        if (over)
            eventfd_write(wait->fd, 1);
        *at = wait->next;
        syncs->wait_count--;
        free_wait(wait);
    }
}

void iso_sync_signal(struct iso_syncs *syncs, struct iso_sync *sync, uint64_t value)
{
    bool forward = value > sync->value;

    sync->value = value;
    if (forward && syncs->waits)
        look_at_waits(syncs);
}

static struct iso_sync_wait *new_wait(struct iso_syncs *syncs, const uint32_t *points, uint32_t count)
{
    struct iso_sync_wait *wait = malloc(sizeof(*wait) + count * sizeof(wait->points[0]));

    if (!wait)
        return NULL;
    *wait = (struct iso_sync_wait){.fd = -1, .count = count};
    if (!take_points(syncs, points, count, wait->points)) {
        free(wait);
        return NULL;
    }
    wait->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wait->fd < 0) {
        int error = errno;
        drop_points(wait->points, count);
        free(wait);
        errno = error;
        return NULL;
    }
    return wait;
}

int iso_sync_wait(struct iso_syncs *syncs, const uint32_t *points, uint32_t count, bool any, uint32_t timeout_ms, int *fd)
{
    struct iso_sync_wait *wait;

    if (syncs->wait_count >= ISO_VTEST_MAX_WAITS)
        look_at_waits(syncs);
    if (count > ISO_VTEST_MAX_SYNCS_AT_ONCE || syncs->wait_count >= ISO_VTEST_MAX_WAITS) {
        errno = EDQUOT;
        return -1;
    }
    wait = new_wait(syncs, points, count);
    if (!wait)
        return -1;
    wait->left = any && count ? 1 : count;
    wait->until_ns = timeout_ms > INT32_MAX ? UINT64_MAX : now_ns() + (uint64_t)timeout_ms * 1000000u;
    *fd = fcntl(wait->fd, F_DUPFD_CLOEXEC, 0);
    if (*fd < 0) {
        free_wait(wait);
        errno = EMFILE;
        return -1;
    }
    if (is_over(wait)) {
        eventfd_write(wait->fd, 1);
        free_wait(wait);
    } else if (!timeout_ms) {
        free_wait(wait);
    } else {
        wait->next = syncs->waits;
        syncs->waits = wait;
        syncs->wait_count++;
    }
    return 0;
}

/* Batches whose fence is not passed yet, oldest first. */

int iso_sync_pend(struct iso_syncs *syncs, const uint32_t *points, uint32_t count, void *fence)
{
    struct iso_sync_pending *pending;

    if (count > ISO_VTEST_MAX_SYNCS_AT_ONCE || syncs->pending_count >= ISO_VTEST_MAX_PENDING) {
        errno = EDQUOT;
        return -1;
    }
    pending = malloc(sizeof(*pending) + count * sizeof(pending->points[0]));
    if (!pending)
        return -1;
    *pending = (struct iso_sync_pending){.fence = fence, .count = count};
    if (!take_points(syncs, points, count, pending->points)) {
        free(pending);
        return -1;
    }
    if (syncs->last)
        syncs->last->next = pending;
    else
        syncs->first = pending;
    syncs->last = pending;
    syncs->pending_count++;
    return 0;
}

void *iso_sync_oldest(const struct iso_syncs *syncs)
{
    return syncs->first ? syncs->first->fence : NULL;
}

static struct iso_sync_pending *pop(struct iso_syncs *syncs)
{
    struct iso_sync_pending *pending = syncs->first;

    syncs->first = pending->next;
    if (!syncs->first)
        syncs->last = NULL;
    syncs->pending_count--;
    return pending;
}

void iso_sync_passed(struct iso_syncs *syncs)
{
    struct iso_sync_pending *pending = pop(syncs);

    for (uint32_t i = 0; i < pending->count; i++)
        iso_sync_signal(syncs, pending->points[i].sync, pending->points[i].value);
    drop_points(pending->points, pending->count);
    free(pending);
}

void iso_syncs_release(struct iso_syncs *syncs)
{
    while (syncs->waits) {
        struct iso_sync_wait *wait = syncs->waits;
        syncs->waits = wait->next;
        free_wait(wait);
    }
    while (syncs->first) {
        struct iso_sync_pending *pending = pop(syncs);
        drop_points(pending->points, pending->count);
        free(pending);
    }
    for (uint32_t i = 0; i < syncs->map.capacity; i++)
        if (syncs->map.slots[i].id)
            unref(syncs->map.slots[i].value);
    iso_idmap_release(&syncs->map);
    memset(syncs, 0, sizeof(*syncs));
}
