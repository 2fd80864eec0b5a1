/* What the front end and the resource table tell the plane: memory, queues, resources. */
#include "plane_state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- memory and queues ---- */

int iso_plane_set_memory(struct iso_plane *plane, struct iso_guestmem *mem)
{
    int outside = 0;
    iso_guestmem_ref(mem);
    pthread_mutex_lock(&plane->lock);
    struct iso_guestmem *before = plane->mem;
    plane->mem = mem;
    for (uint32_t i = 0; i < ISO_QUEUE_COUNT; i++)
        if (plane->queues[i].vq.num && !iso_vq_map(&plane->queues[i].vq, mem))
            outside += plane->queues[i].vq.started;
    iso_plane_pass(plane);
    pthread_mutex_unlock(&plane->lock);
    iso_guestmem_unref(before);
    return outside;
}

int iso_plane_queue_setup(struct iso_plane *plane, uint32_t index, uint32_t num, uint64_t desc_uva, uint64_t avail_uva,
                          uint64_t used_uva, uint16_t base, bool event_idx)
{
    if (index >= ISO_QUEUE_COUNT || !num || num > ISO_VQ_MAX_NUM || (num & (num - 1)))
        return -EINVAL;
    pthread_mutex_lock(&plane->lock);
    struct iso_vq *vq = &plane->queues[index].vq;
    int error = vq->started ? -EINVAL : 0;
    if (!error) {
        vq->desc = NULL; /* what is mapped was found for the old size */
        vq->avail = vq->used = NULL;
        vq->num = num;
        vq->desc_uva = desc_uva;
        vq->avail_uva = avail_uva;
        vq->used_uva = used_uva;
        vq->last_avail = base;
        vq->event_idx = event_idx;
        vq->broken = false;
    }
    pthread_mutex_unlock(&plane->lock);
    return error;
}

static int replace_fd(int *slot, int fd)
{
    int copy = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (fd >= 0 && copy < 0)
        return -errno;
    if (*slot >= 0)
        close(*slot);
    *slot = copy;
    /* A front end may hand over a blocking eventfd; the plane must never sleep in read or write. */
    if (copy >= 0)
        fcntl(copy, F_SETFL, fcntl(copy, F_GETFL) | O_NONBLOCK);
    return 0;
}

int iso_plane_queue_call(struct iso_plane *plane, uint32_t index, int fd)
{
    pthread_mutex_lock(&plane->lock);
    int error = replace_fd(&plane->queues[index].vq.call_fd, fd);
    iso_queue_notify(plane); /* of what was pushed while there was none */
    pthread_mutex_unlock(&plane->lock);
    return error;
}

int iso_plane_queue_err(struct iso_plane *plane, uint32_t index, int fd)
{
    pthread_mutex_lock(&plane->lock);
    int error = replace_fd(&plane->queues[index].vq.err_fd, fd);
    pthread_mutex_unlock(&plane->lock);
    return error;
}

static void forget_kick(struct iso_plane *plane, struct iso_vq *vq)
{
    if (vq->kick_fd >= 0)
        iso_plane_listen(plane, vq->kick_fd, ISO_SOURCE_NONE, 0);
    replace_fd(&vq->kick_fd, -1);
}

static int start(struct iso_plane *plane, uint32_t index, int kick_fd)
{
    struct iso_vq *vq = &plane->queues[index].vq;
    if (!vq->num)
        return -EINVAL;
    if (!iso_vq_map(vq, plane->mem))
        return -EFAULT;
    forget_kick(plane, vq);
    int error = replace_fd(&vq->kick_fd, kick_fd);
    if (!error)
        error = iso_plane_listen(plane, vq->kick_fd, ISO_SOURCE_KICK, index);
    if (error)
        return error;
    if (!vq->started)
        vq->used_idx = vq->signalled_used = vq->used[1]; /* resumed: where we stopped; fresh: 0 */
    vq->started = true;
    return 0;
}

int iso_plane_queue_start(struct iso_plane *plane, uint32_t index, int kick_fd)
{
    pthread_mutex_lock(&plane->lock);
    int error = start(plane, index, kick_fd);
    iso_plane_pass(plane);
    pthread_mutex_unlock(&plane->lock);
    return error;
}

int iso_plane_queue_enable(struct iso_plane *plane, uint32_t index, bool enable)
{
    pthread_mutex_lock(&plane->lock);
    plane->queues[index].vq.enabled = enable;
    iso_plane_pass(plane);
    pthread_mutex_unlock(&plane->lock);
    return 0;
}

uint16_t iso_plane_queue_stop(struct iso_plane *plane, uint32_t index)
{
    pthread_mutex_lock(&plane->lock);
    struct iso_queue *queue = &plane->queues[index];
    queue->vq.started = false;
    forget_kick(plane, &queue->vq);
    uint16_t base = queue->vq.last_avail;
    pthread_mutex_unlock(&plane->lock);
    return base;
}

uint32_t iso_plane_queue_open(struct iso_plane *plane, uint32_t index)
{
    pthread_mutex_lock(&plane->lock);
    uint32_t open = plane->queues[index].open;
    pthread_mutex_unlock(&plane->lock);
    return open;
}

static bool is_on_a_lane(const struct iso_request *request)
{
    return request->work.request == request;
}

/* Takes a queue's commands out of those that wait for Python: an answered request goes back to the pool. */
static void unhand(struct iso_plane *plane, uint32_t index)
{
    struct iso_request *request = plane->handed_first, *next;
    plane->handed_first = plane->handed_last = NULL;
    for (; request; request = next) {
        next = request->next;
        request->next = NULL;
        if (request->queue == index)
            continue;
        if (plane->handed_last)
            plane->handed_last->next = request;
        else
            plane->handed_first = request;
        plane->handed_last = request;
    }
}

void iso_plane_queue_abandon(struct iso_plane *plane, uint32_t index)
{
    pthread_mutex_lock(&plane->lock);
    plane->queues[index].stalled = NULL;
    unhand(plane, index);
    for (uint32_t i = 0; i < plane->request_count; i++) {
        struct iso_request *request = plane->requests[i];
        /* What is on a lane has someone who will complete it; the owner of the lane has to lose that first. */
        if (request->queue == index && request->state == ISO_REQUEST_OPEN && !is_on_a_lane(request))
            iso_request_answer(plane, request, ISO_RESP_ERR_UNSPEC, NULL, 0);
    }
    iso_queue_notify(plane);
    pthread_mutex_unlock(&plane->lock);
}

void iso_plane_set_ring_idx(struct iso_plane *plane, bool enabled)
{
    pthread_mutex_lock(&plane->lock);
    plane->ring_idx = enabled;
    pthread_mutex_unlock(&plane->lock);
}

/* ---- resources ---- */

int iso_plane_resource_set(struct iso_plane *plane, uint32_t resource_id, const struct iso_texture *texture)
{
    struct iso_resource *resource = calloc(1, sizeof(*resource));
    if (!resource)
        return -ENOMEM;
    *resource = (struct iso_resource){.id = resource_id, .texture = *texture};
    pthread_mutex_lock(&plane->lock);
    int error = iso_idmap_get(&plane->resources, resource_id) ? -EEXIST : 0;
    if (!error && !iso_idmap_put(&plane->resources, resource_id, resource))
        error = -ENOMEM;
    pthread_mutex_unlock(&plane->lock);
    if (error)
        free(resource);
    return error;
}

int iso_plane_resource_backing(struct iso_plane *plane, uint32_t resource_id, struct iso_backing *backing)
{
    pthread_mutex_lock(&plane->lock);
    struct iso_resource *resource = iso_idmap_get(&plane->resources, resource_id);
    struct iso_backing *before = resource ? resource->backing : NULL;
    if (resource)
        resource->backing = iso_backing_ref(backing);
    pthread_mutex_unlock(&plane->lock);
    iso_backing_unref(before);
    return resource ? 0 : -ENOENT;
}

int iso_plane_resource_picture(struct iso_plane *plane, uint32_t resource_id, uint32_t width, uint32_t height, uint8_t *pixels)
{
    pthread_mutex_lock(&plane->lock);
    struct iso_resource *resource = iso_idmap_get(&plane->resources, resource_id);
    if (resource) {
        resource->width = width;
        resource->height = height;
        resource->pixels = pixels;
    }
    pthread_mutex_unlock(&plane->lock);
    return resource ? 0 : -ENOENT;
}

int iso_plane_resource_guest_memory(struct iso_plane *plane, uint32_t resource_id)
{
    pthread_mutex_lock(&plane->lock);
    struct iso_resource *resource = iso_idmap_get(&plane->resources, resource_id);
    if (resource)
        resource->guest_memory = true;
    pthread_mutex_unlock(&plane->lock);
    return resource ? 0 : -ENOENT;
}

void iso_plane_resource_remove(struct iso_plane *plane, uint32_t resource_id)
{
    pthread_mutex_lock(&plane->lock);
    struct iso_resource *resource = iso_idmap_remove(&plane->resources, resource_id);
    if (resource)
        iso_sharing_end(plane, resource);
    pthread_mutex_unlock(&plane->lock);
    if (!resource)
        return;
    iso_backing_unref(resource->backing);
    free(resource);
}
