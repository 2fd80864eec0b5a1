/* Requests: from the available ring, through their answer, in the order of their timelines, to the used ring. */
#include "plane_state.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the pool ---- */

static struct iso_request *request_get(struct iso_plane *plane)
{
    struct iso_request *request = plane->free_requests;
    if (request) {
        plane->free_requests = request->next;
        return request;
    }
    if (plane->request_count == ISO_MAX_REQUESTS || !(request = calloc(1, sizeof(*request))))
        return NULL;
    request->slot = plane->request_count;
    plane->requests[plane->request_count++] = request;
    return request;
}

static void request_put(struct iso_plane *plane, struct iso_request *request)
{
    request->state = ISO_REQUEST_FREE;
    request->generation++;
    request->next = plane->free_requests;
    plane->free_requests = request;
}

/* ---- timelines; request.h tells why ---- */

static struct iso_timeline *timeline_get(struct iso_plane *plane, uint32_t ctx_id, uint8_t ring_idx)
{
    struct iso_timeline *line;
    for (line = plane->timelines; line; line = line->next)
        if (line->ctx_id == ctx_id && line->ring_idx == ring_idx)
            return line;
    line = calloc(1, sizeof(*line));
    if (line) {
        *line = (struct iso_timeline){.ctx_id = ctx_id, .ring_idx = ring_idx, .next = plane->timelines};
        plane->timelines = line;
    }
    return line;
}

static void timeline_drop(struct iso_plane *plane, struct iso_timeline *line)
{
    struct iso_timeline **at = &plane->timelines;
    while (*at != line)
        at = &(*at)->next;
    *at = line->next;
    free(line);
}

static void timeline_join(struct iso_plane *plane, struct iso_request *request)
{
    bool own = plane->ring_idx && (request->hdr.flags & ISO_HDR_RING_IDX);
    struct iso_timeline *line = timeline_get(plane, own ? request->hdr.ctx_id : 0, own ? request->hdr.ring_idx : 0);
    request->timeline = line;
    request->later = NULL;
    if (!line)
        return; /* out of memory: retired as soon as it is answered */
    if (line->last)
        line->last->later = request;
    else
        line->first = request;
    line->last = request;
}

/* ---- answering ---- */

static void retire(struct iso_plane *plane, struct iso_request *request)
{
    struct iso_queue *queue = &plane->queues[request->queue];
    if (queue->vq.used)
        iso_vq_push(&queue->vq, request->chain.head, request->written);
    queue->open--;
    request_put(plane, request);
}

static void timeline_retire(struct iso_plane *plane, struct iso_timeline *line)
{
    while (line->first && line->first->state == ISO_REQUEST_DONE) {
        struct iso_request *request = line->first;
        line->first = request->later;
        retire(plane, request);
    }
    if (!line->first)
        timeline_drop(plane, line);
}

void iso_request_answer(struct iso_plane *plane, struct iso_request *request, uint32_t type, const uint8_t *payload, uint32_t len)
{
    struct iso_ctrl_hdr hdr = {.type = type};
    if (request->hdr.flags & ISO_HDR_FENCE) {
        hdr.flags = request->hdr.flags & (ISO_HDR_FENCE | ISO_HDR_RING_IDX);
        hdr.fence_id = request->hdr.fence_id;
        hdr.ctx_id = request->hdr.ctx_id;
        hdr.ring_idx = hdr.flags & ISO_HDR_RING_IDX ? request->hdr.ring_idx : 0;
    }
    plane->stats.responses++;
    plane->stats.errors += type >= ISO_RESP_ERR_UNSPEC;
    request->written = 0;
    if (plane->mem && request->chain.in_count) {
        if (!len) {
            request->written = iso_chain_write(plane->mem, &request->chain, &hdr, sizeof(hdr));
        } else {
            uint8_t *whole = malloc(sizeof(hdr) + len);
            if (whole) {
                memcpy(whole, &hdr, sizeof(hdr));
                memcpy(whole + sizeof(hdr), payload, len);
                request->written = iso_chain_write(plane->mem, &request->chain, whole, (uint32_t)sizeof(hdr) + len);
                free(whole);
            }
        }
    }
    request->state = ISO_REQUEST_DONE;
    if (request->timeline)
        timeline_retire(plane, request->timeline);
    else
        retire(plane, request);
}

/* ---- draining ---- */

/* It copies the whole chain, and a guest can list the same memory a thousand times. */
static void hand_to_python(struct iso_plane *plane, struct iso_request *request)
{
    if (request->chain.out_len > ISO_COMMAND_MAX_BYTES) {
        iso_request_answer(plane, request, ISO_RESP_ERR_OUT_OF_MEMORY, NULL, 0);
        return;
    }
    request->next = NULL;
    if (plane->handed_last)
        plane->handed_last->next = request;
    else
        plane->handed_first = request;
    plane->handed_last = request;
    plane->queues[request->queue].unplaced++;
    plane->stats.handed++;
    iso_plane_tell_python(plane);
}

/* One of the plane's own commands, with nothing before it that Python has yet to place. */
static void run_here(struct iso_plane *plane, struct iso_request *request)
{
    if (!iso_command_run(plane, request))
        hand_to_python(plane, request);
}

/* Puts a popped request on its way. False: it has to wait for Python, and so does everything behind it. */
static bool admit(struct iso_plane *plane, struct iso_queue *queue, struct iso_request *request)
{
    bool fast = request->queue == ISO_QUEUE_CONTROL && iso_command_is_fast(request->hdr.type);
    if (!fast)
        hand_to_python(plane, request);
    else if (queue->unplaced) {
        queue->stalled = request;
        return false;
    } else
        run_here(plane, request);
    return true;
}

/* Copies the header and opens the request. False if the chain is too short to be a command. */
static bool open_request(struct iso_plane *plane, struct iso_queue *queue, struct iso_request *request, uint32_t index)
{
    request->queue = (uint8_t)index;
    request->state = ISO_REQUEST_OPEN;
    request->timeline = NULL;
    request->work = (struct iso_work){0};
    request->hdr = (struct iso_ctrl_hdr){0};
    queue->open++;
    plane->stats.commands++;
    if (!iso_chain_read(plane->mem, &request->chain, 0, &request->hdr, sizeof(request->hdr)))
        return false;
    if (index == ISO_QUEUE_CONTROL && (request->hdr.flags & ISO_HDR_FENCE))
        timeline_join(plane, request);
    return true;
}

static void give_back_malformed(struct iso_plane *plane, struct iso_queue *queue, struct iso_request *request)
{
    plane->stats.malformed++;
    iso_vq_push(&queue->vq, request->chain.head, 0);
    request_put(plane, request);
}

/* One step. Returns what the queue gave; stops with BROKEN when nothing more may be taken now. */
static enum iso_pop take_one(struct iso_plane *plane, struct iso_queue *queue, uint32_t index)
{
    struct iso_request *request = request_get(plane);
    if (!request)
        return ISO_POP_BROKEN; /* all in use: the next retirement brings us back here */
    enum iso_pop pop = iso_vq_pop(&queue->vq, plane->mem, &request->chain);
    if (pop == ISO_POP_MALFORMED) {
        give_back_malformed(plane, queue, request);
    } else if (pop == ISO_POP_CHAIN) {
        if (!open_request(plane, queue, request, index))
            iso_request_answer(plane, request, ISO_RESP_ERR_UNSPEC, NULL, 0);
        else if (!admit(plane, queue, request))
            return ISO_POP_BROKEN;
    } else {
        request_put(plane, request);
        if (pop == ISO_POP_BROKEN) {
            iso_plane_post(plane, (struct iso_event){.kind = ISO_EVENT_QUEUE_BROKEN, .queue = index});
            if (queue->vq.err_fd >= 0)
                (void)!write(queue->vq.err_fd, &(uint64_t){1}, sizeof(uint64_t));
        }
    }
    return pop;
}

bool iso_queue_drain(struct iso_plane *plane, uint32_t index)
{
    struct iso_queue *queue = &plane->queues[index];
    if (queue->stalled) {
        if (queue->unplaced)
            return false;
        struct iso_request *request = queue->stalled;
        queue->stalled = NULL;
        run_here(plane, request);
    }
    if (!iso_vq_ready(&queue->vq) || !plane->mem)
        return false;
    iso_vq_disable_kick(&queue->vq);
    for (uint32_t budget = 4 * queue->vq.num; budget; budget--) {
        enum iso_pop pop = take_one(plane, queue, index);
        if (pop == ISO_POP_BROKEN)
            return false;
        if (pop == ISO_POP_EMPTY && !iso_vq_enable_kick(&queue->vq))
            return false;
    }
    return true;
}

void iso_queue_notify(struct iso_plane *plane)
{
    for (uint32_t i = 0; i < ISO_QUEUE_COUNT; i++) {
        struct iso_vq *vq = &plane->queues[i].vq;
        if (vq->used && vq->call_fd >= 0 && iso_vq_should_call(vq)) {
            plane->stats.calls++;
            (void)!write(vq->call_fd, &(uint64_t){1}, sizeof(uint64_t));
        }
    }
}
