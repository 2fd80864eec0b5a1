/*
 * The device side of a split virtqueue (virtio 1.3, 2.7), with indirect descriptors and event-idx.
 *
 * The driver may write the rings and descriptors at any time: every index and length is read once into our own memory and
 * checked there. A chain that makes no sense (a loop, an index out of range, a nested or misshapen indirect table, a
 * writable part before a readable one) is given back with length 0 and costs the guest that one request. An available index
 * that runs ahead of the ring cannot be repaired: the queue is broken until it is set up again.
 */
#ifndef ISOREND_VIRTQUEUE_H
#define ISOREND_VIRTQUEUE_H

#include "guestmem.h"

#include <stdbool.h>
#include <stdint.h>

#define ISO_VQ_MAX_NUM 1024u
/* Linux lets an indirect table be longer than the ring; nobody's is longer than this. */
#define ISO_VQ_MAX_CHAIN 1024u

struct iso_seg {
    uint64_t gpa;
    uint32_t len;
};

/* One descriptor chain: `out_count` segments that the device reads, then `in_count` that it writes. */
struct iso_chain {
    struct iso_seg *segs; /* grows as needed, kept for the next chain */
    uint32_t seg_capacity;
    uint32_t out_count, in_count;
    uint64_t out_len, in_len; /* bytes */
    uint16_t head;
};

struct iso_vring_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
};

struct iso_vq {
    uint32_t num; /* ring size; 0 until set */
    uint64_t desc_uva, avail_uva, used_uva;
    struct iso_vring_desc *desc; /* NULL while the rings are not mapped */
    uint16_t *avail;             /* flags, idx, ring[num], used_event */
    uint16_t *used;              /* flags, idx, ring of {u32 id, u32 len}[num], avail_event */
    uint16_t last_avail, used_idx, signalled_used;
    bool event_idx, started, enabled, broken;
    int kick_fd, call_fd, err_fd; /* -1 when there is none; owned */
};

enum iso_pop { ISO_POP_EMPTY, ISO_POP_CHAIN, ISO_POP_MALFORMED, ISO_POP_BROKEN };

void iso_vq_init(struct iso_vq *vq);
/* Finds the rings again in (new) guest memory. Returns false, with the queue unmapped, if they do not lie in it. */
bool iso_vq_map(struct iso_vq *vq, const struct iso_guestmem *mem);
/* Whether it may be popped: rings mapped, started (a kick fd came), enabled, not broken. */
bool iso_vq_ready(const struct iso_vq *vq);
/*
 * Takes the next chain. CHAIN: filled in. MALFORMED: only chain->head is valid; push it back with length 0. BROKEN: the
 * available index is impossible; vq->broken is set.
 */
enum iso_pop iso_vq_pop(struct iso_vq *vq, const struct iso_guestmem *mem, struct iso_chain *chain);
/* Copies `len` of the chain's readable bytes, from `skip` on. False if there are fewer or they are not RAM. */
bool iso_chain_read(const struct iso_guestmem *mem, const struct iso_chain *chain, uint64_t skip, void *to, uint64_t len);
/* Fills the chain's writable segments from the start with `len` bytes. Returns how many found a place. */
uint32_t iso_chain_write(const struct iso_guestmem *mem, const struct iso_chain *chain, const void *from, uint32_t len);
void iso_vq_push(struct iso_vq *vq, uint16_t head, uint32_t written);
/* Whether the driver asked to be told about what was pushed since the last time this returned true. */
bool iso_vq_should_call(struct iso_vq *vq);
/* Asks the driver not to kick (a hint). */
void iso_vq_disable_kick(struct iso_vq *vq);
/* Asks the driver to kick, then looks once more. Returns true if something is there already. */
bool iso_vq_enable_kick(struct iso_vq *vq);

#endif
