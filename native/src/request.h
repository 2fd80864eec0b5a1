/*
 * Requests: descriptor chains taken from a virtqueue, each completed exactly once.
 *
 * A request is answered in two steps. completing it writes the response into the guest's buffers; retiring it puts the
 * chain on the used ring. Between the two a fenced request may have to wait:
 *
 * The order of fences. By the specification (5.7.6.7) a fenced command is answered once it has been finished, and that is
 * all. Linux assumes more: its fences without VIRTIO_GPU_FLAG_INFO_RING_IDX form one timeline over all contexts of the
 * device, and the answer to a later one signals every earlier one. Were context 2's fence 11 to overtake context 1's fence
 * 10, the guest would let program 1 read a picture that is still being drawn. So fenced requests without ring_idx retire in
 * queue order, whatever their context, and those with ring_idx in the order of their (context, ring_idx). A context that
 * never finishes holds the global timeline up until it is killed for that; then its requests complete with an error.
 */
#ifndef ISOREND_REQUEST_H
#define ISOREND_REQUEST_H

#include "lane.h"
#include "virtqueue.h"

enum { ISO_QUEUE_CONTROL = 0, ISO_QUEUE_CURSOR = 1, ISO_QUEUE_COUNT = 2 };

/* struct virtio_gpu_ctrl_hdr, little endian as the guest wrote it */
struct iso_ctrl_hdr {
    uint32_t type, flags;
    uint64_t fence_id;
    uint32_t ctx_id;
    uint8_t ring_idx;
    uint8_t padding[3];
};

enum { ISO_HDR_FENCE = 1, ISO_HDR_RING_IDX = 2 };
enum {
    ISO_RESP_OK_NODATA = 0x1100,
    ISO_RESP_ERR_UNSPEC = 0x1200,
    ISO_RESP_ERR_OUT_OF_MEMORY = 0x1201,
    ISO_RESP_ERR_INVALID_RESOURCE_ID = 0x1203,
    ISO_RESP_ERR_INVALID_CONTEXT_ID = 0x1204,
    ISO_RESP_ERR_INVALID_PARAMETER = 0x1205,
};

enum iso_request_state {
    ISO_REQUEST_FREE,
    ISO_REQUEST_OPEN,  /* popped, not answered */
    ISO_REQUEST_DONE,  /* answered, waits for its turn on its timeline */
};

struct iso_request {
    uint32_t slot, generation;
    uint8_t queue, state;
    struct iso_ctrl_hdr hdr;
    struct iso_chain chain;
    uint32_t written; /* bytes of the answer */
    struct iso_timeline *timeline;
    struct iso_request *next; /* free list, or the queue of requests for Python */
    struct iso_request *later; /* on the timeline */
    struct iso_work work;
};

struct iso_timeline {
    uint32_t ctx_id; /* 0: the global one */
    uint8_t ring_idx;
    struct iso_request *first, *last;
    struct iso_timeline *next;
};

static inline uint64_t iso_request_handle(const struct iso_request *request)
{
    return (uint64_t)request->generation << 32 | request->slot;
}

#endif
