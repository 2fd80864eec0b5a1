#include "plane_state.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* ---- the thread ---- */

int iso_plane_listen(struct iso_plane *plane, int fd, enum iso_source source, uint32_t number)
{
    if (source == ISO_SOURCE_NONE)
        return epoll_ctl(plane->epoll_fd, EPOLL_CTL_DEL, fd, NULL) ? -errno : 0;
    /* A lane's doorbell is never read: a worker shares the file, could make it blocking and take the count away between
     * our look and our read, and we would sleep with the lock held. Nor is a kick, which would cost a system call for each.
     * Every ring of them is an edge. */
    uint32_t edge = source == ISO_SOURCE_WAKE ? 0 : EPOLLET;
    struct epoll_event event = {.events = EPOLLIN | edge, .data.u64 = (uint64_t)source << 32 | number};
    return epoll_ctl(plane->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static void ring(int fd)
{
    (void)!write(fd, &(uint64_t){1}, sizeof(uint64_t)); /* fails only when it is rung already */
}

static void hush(int fd)
{
    uint64_t count;
    (void)!read(fd, &count, sizeof(count));
}

void iso_plane_pass(struct iso_plane *plane)
{
    bool more = false;
    if (plane->ready)
        iso_plane_settle(plane); /* which may retire what a queue waits for */
    for (uint32_t i = 0; i < ISO_QUEUE_COUNT; i++)
        more |= iso_queue_drain(plane, i);
    iso_plane_settle(plane);
    if (more)
        ring(plane->wake_fd); /* others may have the lock first */
}

static void on_source(struct iso_plane *plane, uint64_t data)
{
    uint32_t number = (uint32_t)data;
    struct iso_lane *lane;
    switch ((enum iso_source)(data >> 32)) {
    case ISO_SOURCE_WAKE:
        hush(plane->wake_fd);
        break;
    case ISO_SOURCE_KICK:
        plane->stats.kicks++;
        break;
    case ISO_SOURCE_LANE:
        lane = iso_idmap_get(&plane->lanes, number);
        if (lane)
            iso_lane_drain(plane, lane);
        break;
    case ISO_SOURCE_NONE:
        break;
    }
}

static void *run(void *argument)
{
    struct iso_plane *plane = argument;
    struct epoll_event events[32];
    bool stopping = false;
    while (!stopping) {
        int count = epoll_wait(plane->epoll_fd, events, 32, -1);
        pthread_mutex_lock(&plane->lock);
        for (int i = 0; i < count; i++)
            on_source(plane, events[i].data.u64);
        iso_plane_pass(plane);
        stopping = plane->stopping;
        pthread_mutex_unlock(&plane->lock);
    }
    return NULL;
}

int iso_plane_start(struct iso_plane *plane)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the interpreter's thread */
    int error = pthread_create(&plane->thread, NULL, run, plane);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    plane->running = !error;
    return -error;
}

/* ---- life ---- */

struct iso_plane *iso_plane_new(void)
{
    struct iso_plane *plane = calloc(1, sizeof(*plane));
    if (!plane)
        return NULL;
    pthread_mutex_init(&plane->lock, NULL);
    for (uint32_t i = 0; i < ISO_QUEUE_COUNT; i++)
        iso_vq_init(&plane->queues[i].vq);
    plane->grave.lost = true;
    plane->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    plane->python_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    plane->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (plane->epoll_fd < 0 || plane->python_fd < 0 || plane->wake_fd < 0 ||
        iso_plane_listen(plane, plane->wake_fd, ISO_SOURCE_WAKE, 0)) {
        iso_plane_free(plane);
        return NULL;
    }
    return plane;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void free_resource(struct iso_plane *plane, struct iso_resource *resource)
{
    iso_sharing_end(plane, resource);
    iso_backing_unref(resource->backing);
    free(resource);
}

void iso_plane_free(struct iso_plane *plane)
{
    if (!plane)
        return;
    if (plane->running) {
        pthread_mutex_lock(&plane->lock);
        plane->stopping = true;
        ring(plane->wake_fd);
        pthread_mutex_unlock(&plane->lock);
        pthread_join(plane->thread, NULL);
    }
    for (uint32_t i = 0; i < plane->resources.capacity; i++)
        if (plane->resources.slots[i].id)
            free_resource(plane, plane->resources.slots[i].value);
    for (uint32_t i = 0; i < plane->contexts.capacity; i++)
        if (plane->contexts.slots[i].id)
            iso_context_unref(plane->contexts.slots[i].value);
    for (uint32_t i = 0; i < ISO_QUEUE_COUNT; i++) {
        close_fd(&plane->queues[i].vq.kick_fd);
        close_fd(&plane->queues[i].vq.call_fd);
        close_fd(&plane->queues[i].vq.err_fd);
    }
    for (uint32_t i = 0; i < plane->request_count; i++) {
        free(plane->requests[i]->chain.segs);
        free(plane->requests[i]);
    }
    while (plane->events_first) {
        struct iso_event_node *node = plane->events_first;
        plane->events_first = node->next;
        free(node);
    }
    while (plane->timelines) {
        struct iso_timeline *line = plane->timelines;
        plane->timelines = line->next;
        free(line);
    }
    iso_idmap_release(&plane->contexts);
    iso_idmap_release(&plane->lanes);
    iso_idmap_release(&plane->resources);
    iso_guestmem_unref(plane->mem);
    close_fd(&plane->epoll_fd);
    close_fd(&plane->python_fd);
    close_fd(&plane->wake_fd);
    pthread_mutex_destroy(&plane->lock);
    free(plane);
}

int iso_plane_event_fd(const struct iso_plane *plane)
{
    return plane->python_fd;
}

/* ---- events and commands for Python ---- */

void iso_plane_tell_python(struct iso_plane *plane)
{
    if (!plane->python_told)
        ring(plane->python_fd);
    plane->python_told = true;
}

void iso_plane_post(struct iso_plane *plane, struct iso_event event)
{
    struct iso_event_node *node = malloc(sizeof(*node));
    if (!node)
        abort(); /* an event lost would leave a request open for ever */
    *node = (struct iso_event_node){event, NULL};
    if (plane->events_last)
        plane->events_last->next = node;
    else
        plane->events_first = node;
    plane->events_last = node;
    iso_plane_tell_python(plane);
}

static bool next_event(struct iso_plane *plane, struct iso_event *event)
{
    struct iso_event_node *node = plane->events_first;
    if (!node)
        return false;
    *event = node->event;
    plane->events_first = node->next;
    if (!plane->events_first)
        plane->events_last = NULL;
    free(node);
    if (event->kind == ISO_EVENT_FLIPPED) {
        struct iso_scanout *scanout = &plane->scanouts[event->scanout];
        scanout->flipped = false;
        event->resource = scanout->resource_id;
        event->part = scanout->part;
    }
    return true;
}

/* Copies a command's readable bytes. What the header said when the command was popped stays what it says. */
static int next_command(struct iso_plane *plane, struct iso_event *event, uint8_t *buffer, uint64_t capacity)
{
    struct iso_request *request = plane->handed_first;
    *event = (struct iso_event){.kind = ISO_EVENT_COMMAND, .queue = request->queue, .request = iso_request_handle(request),
                                .len = request->chain.out_len};
    bool abandoned = request->state != ISO_REQUEST_OPEN || !plane->mem;
    if (!abandoned && event->len > capacity)
        return -ENOBUFS;
    plane->handed_first = request->next;
    if (!plane->handed_first)
        plane->handed_last = NULL;
    if (abandoned || !iso_chain_read(plane->mem, &request->chain, 0, buffer, event->len)) {
        if (!abandoned)
            iso_request_answer(plane, request, ISO_RESP_ERR_INVALID_PARAMETER, NULL, 0);
        event->kind = ISO_EVENT_NONE;
        return 1;
    }
    if (request->queue == ISO_QUEUE_CONTROL || event->len >= sizeof(request->hdr))
        memcpy(buffer, &request->hdr, sizeof(request->hdr));
    return 1;
}

static bool has_something(const struct iso_plane *plane)
{
    return plane->events_first || plane->handed_first;
}

int iso_plane_take(struct iso_plane *plane, struct iso_event *event, uint8_t *buffer, uint64_t capacity)
{
    int got = 1;
    pthread_mutex_lock(&plane->lock);
    if (!has_something(plane)) {
        /* Python has placed all that it was given: the queues may go on, which may give it more. */
        for (uint32_t i = 0; i < ISO_QUEUE_COUNT; i++)
            plane->queues[i].unplaced = 0;
        iso_plane_pass(plane);
    }
    if (next_event(plane, event)) {
        /* taken */
    } else if (plane->handed_first) {
        got = next_command(plane, event, buffer, capacity);
    } else {
        if (plane->python_told)
            hush(plane->python_fd);
        plane->python_told = false;
        *event = (struct iso_event){.kind = ISO_EVENT_NONE};
        got = 0;
    }
    pthread_mutex_unlock(&plane->lock);
    return got;
}

static struct iso_request *open_request(struct iso_plane *plane, uint64_t handle)
{
    uint32_t slot = (uint32_t)handle;
    if (slot >= plane->request_count)
        return NULL;
    struct iso_request *request = plane->requests[slot];
    return request->state == ISO_REQUEST_OPEN && request->generation == (uint32_t)(handle >> 32) ? request : NULL;
}

int iso_plane_complete(struct iso_plane *plane, uint64_t handle, uint32_t type, const uint8_t *payload, uint32_t len)
{
    pthread_mutex_lock(&plane->lock);
    struct iso_request *request = open_request(plane, handle);
    if (request)
        iso_request_answer(plane, request, type, payload, len);
    pthread_mutex_unlock(&plane->lock);
    return request ? 0 : -ENOENT;
}

void iso_plane_flush(struct iso_plane *plane)
{
    pthread_mutex_lock(&plane->lock);
    iso_plane_pass(plane);
    pthread_mutex_unlock(&plane->lock);
}

void iso_plane_get_stats(struct iso_plane *plane, struct iso_plane_stats *out)
{
    pthread_mutex_lock(&plane->lock);
    *out = plane->stats;
    pthread_mutex_unlock(&plane->lock);
}
