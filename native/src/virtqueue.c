#include "virtqueue.h"

#include <stdatomic.h>
#include <stdlib.h>

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };
enum { AVAIL_NO_INTERRUPT = 1, USED_NO_NOTIFY = 1 };

/* Shared 16-bit ring words, accessed atomically; the rings are little endian and so are the hosts that we support. */
static uint16_t load16(const uint16_t *at)
{
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

static void store16(uint16_t *at, uint16_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELEASE);
}

static uint16_t *used_event(struct iso_vq *vq)
{
    return &vq->avail[2 + vq->num];
}

static uint16_t *avail_event(struct iso_vq *vq)
{
    return &vq->used[2 + 4 * vq->num];
}

void iso_vq_init(struct iso_vq *vq)
{
    *vq = (struct iso_vq){.kick_fd = -1, .call_fd = -1, .err_fd = -1};
}

bool iso_vq_map(struct iso_vq *vq, const struct iso_guestmem *mem)
{
    vq->desc = NULL;
    vq->avail = vq->used = NULL;
    if (!mem || !vq->num)
        return false;
    void *desc = iso_guestmem_at_uva(mem, vq->desc_uva, 16ull * vq->num);
    void *avail = iso_guestmem_at_uva(mem, vq->avail_uva, 6ull + 2 * vq->num);
    void *used = iso_guestmem_at_uva(mem, vq->used_uva, 6ull + 8 * vq->num);
    if (!desc || !avail || !used)
        return false;
    if (((uintptr_t)desc & 15) || ((uintptr_t)avail & 1) || ((uintptr_t)used & 3))
        return false;
    vq->desc = desc;
    vq->avail = avail;
    vq->used = used;
    return true;
}

bool iso_vq_ready(const struct iso_vq *vq)
{
    return vq->desc && vq->started && vq->enabled && !vq->broken;
}

static bool chain_add(struct iso_chain *chain, const struct iso_vring_desc *desc)
{
    uint32_t count = chain->out_count + chain->in_count;
    if (count == ISO_VQ_MAX_CHAIN)
        return false;
    if (count == chain->seg_capacity) {
        uint32_t capacity = count ? count * 2 : 16;
        struct iso_seg *segs = realloc(chain->segs, capacity * sizeof(*segs));
        if (!segs)
            return false;
        chain->segs = segs;
        chain->seg_capacity = capacity;
    }
    chain->segs[count] = (struct iso_seg){desc->addr, desc->len};
    if (desc->flags & DESC_WRITE) {
        chain->in_count++;
        chain->in_len += desc->len;
    } else {
        if (chain->in_count)
            return false; /* 2.7.4.2: writable descriptors come after readable ones */
        chain->out_count++;
        chain->out_len += desc->len;
    }
    return true;
}

/* Descriptors of an indirect table, copied one at a time. */
static bool walk_indirect(const struct iso_guestmem *mem, const struct iso_vring_desc *table, struct iso_chain *chain)
{
    uint32_t count = table->len / sizeof(struct iso_vring_desc), index = 0;
    if (!count || table->len % sizeof(struct iso_vring_desc) || count > ISO_VQ_MAX_CHAIN)
        return false;
    for (uint32_t steps = 0; steps < count; steps++) {
        struct iso_vring_desc desc;
        uint64_t at;
        if (__builtin_add_overflow(table->addr, (uint64_t)index * sizeof(desc), &at) ||
            !iso_guestmem_read(mem, at, &desc, sizeof(desc)))
            return false;
        if ((desc.flags & DESC_INDIRECT) || !chain_add(chain, &desc))
            return false;
        if (!(desc.flags & DESC_NEXT))
            return true;
        index = desc.next;
        if (index >= count)
            return false;
    }
    return false; /* more steps than entries: a loop */
}

static bool walk(struct iso_vq *vq, const struct iso_guestmem *mem, struct iso_chain *chain)
{
    uint32_t index = chain->head;
    for (uint32_t steps = 0; steps < vq->num; steps++) {
        struct iso_vring_desc desc = *(volatile struct iso_vring_desc *)&vq->desc[index];
        if (desc.flags & DESC_INDIRECT)
            return !(desc.flags & DESC_NEXT) && walk_indirect(mem, &desc, chain); /* 2.7.5.3.2: WRITE is ignored */
        if (!chain_add(chain, &desc))
            return false;
        if (!(desc.flags & DESC_NEXT))
            return true;
        index = desc.next;
        if (index >= vq->num)
            return false;
    }
    return false;
}

enum iso_pop iso_vq_pop(struct iso_vq *vq, const struct iso_guestmem *mem, struct iso_chain *chain)
{
    uint16_t waiting = (uint16_t)(load16(&vq->avail[1]) - vq->last_avail);
    if (!waiting)
        return ISO_POP_EMPTY;
    if (waiting > vq->num) {
        vq->broken = true;
        return ISO_POP_BROKEN;
    }
    uint16_t head = load16(&vq->avail[2 + (vq->last_avail & (vq->num - 1))]);
    if (head >= vq->num) {
        vq->broken = true; /* it has no number under which it could be given back */
        return ISO_POP_BROKEN;
    }
    vq->last_avail++;
    chain->head = head;
    chain->out_count = chain->in_count = 0;
    chain->out_len = chain->in_len = 0;
    return walk(vq, mem, chain) ? ISO_POP_CHAIN : ISO_POP_MALFORMED;
}

bool iso_chain_read(const struct iso_guestmem *mem, const struct iso_chain *chain, uint64_t skip, void *to, uint64_t len)
{
    uint8_t *at = to;
    for (uint32_t i = 0; i < chain->out_count && len; i++) {
        const struct iso_seg *seg = &chain->segs[i];
        if (skip >= seg->len) {
            skip -= seg->len;
            continue;
        }
        uint64_t take = seg->len - skip < len ? seg->len - skip : len;
        if (seg->gpa > UINT64_MAX - skip || !iso_guestmem_read(mem, seg->gpa + skip, at, take))
            return false;
        at += take;
        len -= take;
        skip = 0;
    }
    return !len;
}

uint32_t iso_chain_write(const struct iso_guestmem *mem, const struct iso_chain *chain, const void *from, uint32_t len)
{
    const uint8_t *at = from;
    uint32_t written = 0;
    for (uint32_t i = 0; i < chain->in_count && written < len; i++) {
        const struct iso_seg *seg = &chain->segs[chain->out_count + i];
        uint32_t take = seg->len < len - written ? seg->len : len - written;
        if (!iso_guestmem_write(mem, seg->gpa, at + written, take))
            break;
        written += take;
    }
    return written;
}

void iso_vq_push(struct iso_vq *vq, uint16_t head, uint32_t written)
{
    uint32_t *element = (uint32_t *)(void *)&vq->used[2] + 2 * (vq->used_idx & (vq->num - 1));
    element[0] = head;
    element[1] = written;
    vq->used_idx++;
    store16(&vq->used[1], vq->used_idx);
}

bool iso_vq_should_call(struct iso_vq *vq)
{
    uint16_t old = vq->signalled_used, now = vq->used_idx;
    if (old == now)
        return false;
    atomic_thread_fence(memory_order_seq_cst); /* the used index is out before we look whether anybody waits for it */
    bool call;
    if (vq->event_idx) /* 2.7.7.2: has the index passed used_event? */
        call = (uint16_t)(now - load16(used_event(vq)) - 1) < (uint16_t)(now - old);
    else
        call = !(load16(&vq->avail[0]) & AVAIL_NO_INTERRUPT);
    vq->signalled_used = now;
    return call;
}

void iso_vq_disable_kick(struct iso_vq *vq)
{
    if (!vq->event_idx)
        store16(&vq->used[0], USED_NO_NOTIFY);
}

bool iso_vq_enable_kick(struct iso_vq *vq)
{
    if (vq->event_idx)
        store16(avail_event(vq), vq->last_avail);
    else
        store16(&vq->used[0], 0);
    atomic_thread_fence(memory_order_seq_cst);
    return load16(&vq->avail[1]) != vq->last_avail;
}
