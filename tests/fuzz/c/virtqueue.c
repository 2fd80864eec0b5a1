/*
 * The device side of a virtqueue, whose rings, descriptors and memory are what the input says, and change while they are
 * looked at: whoever reads guest memory in pieces (indirect tables, chains) finds bytes changed in between. The first bytes
 * make a memory table out of nothing but numbers.
 */
#include "guest.h"
#include "virtqueue.h"

#include <sys/mman.h>
#include <unistd.h>

enum { MAX_NUM = 64, RINGS = 0x1000, MAX_HELD = 128, BUFFER = 4096 };

struct queue {
    struct iso_vq vq;
    struct iso_chain chain;
    uint16_t held[MAX_HELD]; /* heads taken and not given back */
    uint32_t held_count;
};

static void set_up(struct queue *queue, struct input *input, const struct iso_guestmem *memory)
{
    const uint8_t how = input_u8(input);
    struct iso_vq *vq = &queue->vq;

    iso_vq_init(vq);
    queue->held_count = 0;
    vq->num = 1u << (how & 7) < MAX_NUM ? 1u << (how & 7) : MAX_NUM;
    vq->event_idx = how & 8;
    vq->desc_uva = GUEST_UVA + RINGS;
    vq->avail_uva = vq->desc_uva + 16ull * vq->num;
    vq->used_uva = vq->avail_uva + 8ull + 2 * vq->num;
    if (how & 16)
        vq->desc_uva = GUEST_UVA + guest_address(input);
    if (how & 32)
        vq->avail_uva = GUEST_UVA + guest_address(input);
    if (how & 64)
        vq->used_uva = GUEST_UVA + guest_address(input);
    if (how & 128)
        vq->last_avail = vq->used_idx = vq->signalled_used = input_u16(input);
    vq->started = vq->enabled = true;
    iso_vq_map(vq, memory);
}

static void put_descriptor(const struct queue *queue, struct input *input)
{
    const uint8_t index = input_u8(input), how = input_u8(input);
    struct iso_vring_desc desc = {.addr = guest_address(input), .len = input_number(input), .flags = how & 7};

    desc.next = how & 8 ? input_u16(input) : (uint16_t)(index + 1);
    /* In the ring, or where an indirect table may be. */
    guest_put((how & 16 ? 0x4000 : queue->vq.desc_uva - GUEST_UVA) + 16ull * index, &desc, sizeof(desc));
}

static void offer(const struct queue *queue, struct input *input)
{
    const struct iso_vq *vq = &queue->vq;
    const uint16_t head = input_u8(input), index = (uint16_t)(vq->last_avail + 1);
    const uint64_t avail = vq->avail_uva - GUEST_UVA;

    guest_put(avail + 4 + 2ull * (vq->last_avail & (vq->num - 1)), &head, 2);
    guest_put(avail + 2, &index, 2);
}

static void look(const struct queue *queue, struct input *input, const struct iso_guestmem *memory)
{
    const struct iso_chain *chain = &queue->chain;
    const uint64_t skip = input_number(input);
    const uint32_t len = input_u16(input) % (BUFFER + 1);
    uint8_t *bytes = malloc(len ? len : 1);
    uint64_t sum = 0;

    CHECK(bytes);
    CHECK(chain->out_count + chain->in_count >= 1 && chain->out_count + chain->in_count <= ISO_VQ_MAX_CHAIN);
    for (uint32_t i = 0; i < chain->out_count + chain->in_count; i++)
        sum += chain->segs[i].len;
    CHECK(sum == chain->out_len + chain->in_len);
    if (iso_chain_read(memory, chain, skip, bytes, len))
        CHECK(!len || skip + len <= chain->out_len);
    memset(bytes, 0xa5, len);
    CHECK(iso_chain_write(memory, chain, bytes, len) <= (len < chain->in_len ? len : chain->in_len));
    free(bytes);
}

static void take(struct queue *queue, struct input *input, const struct iso_guestmem *memory)
{
    const uint16_t before = queue->vq.last_avail;

    if (!iso_vq_ready(&queue->vq) || queue->held_count == MAX_HELD)
        return;
    guest_changes(input);
    enum iso_pop pop = iso_vq_pop(&queue->vq, memory, &queue->chain);
    CHECK((pop == ISO_POP_BROKEN) == queue->vq.broken);
    CHECK((uint16_t)(queue->vq.last_avail - before) == (pop == ISO_POP_CHAIN || pop == ISO_POP_MALFORMED));
    if (pop == ISO_POP_CHAIN || pop == ISO_POP_MALFORMED) {
        CHECK(queue->chain.head < queue->vq.num);
        queue->held[queue->held_count++] = queue->chain.head;
    }
    if (pop == ISO_POP_CHAIN)
        look(queue, input, memory);
    guest_changes(NULL);
}

static void give_back(struct queue *queue, struct input *input)
{
    const uint8_t which = input_u8(input);

    if (!queue->held_count || !queue->vq.used)
        return;
    uint16_t *held = &queue->held[which % queue->held_count];
    iso_vq_push(&queue->vq, *held, input_u32(input));
    *held = queue->held[--queue->held_count];
}

/* A table of regions that overlap, wrap or lie beyond the file is refused, and one that is taken can be read. */
static void add_regions(struct input *input, int fd)
{
    struct iso_guestmem *memory = iso_guestmem_new();
    uint8_t byte;

    CHECK(memory);
    for (uint8_t count = input_u8(input) & 3; count; count--) {
        uint64_t gpa = guest_address(input), size = input_number(input), uva = guest_address(input), offset = input_number(input);
        if (!iso_guestmem_add(memory, fd, gpa, size, uva, offset)) {
            CHECK(iso_guestmem_contains(memory, gpa, size) && !iso_guestmem_contains(memory, gpa, UINT64_MAX));
            CHECK(iso_guestmem_read(memory, gpa + size - 1, &byte, 1) && iso_guestmem_at_uva(memory, uva, size));
        }
    }
    iso_guestmem_unref(memory);
}

static void step(struct queue *queue, struct input *input, const struct iso_guestmem *memory)
{
    uint8_t bytes[32];

    switch (input_u8(input) % 8) {
    case 0:
        put_descriptor(queue, input);
        break;
    case 1:
        offer(queue, input);
        take(queue, input, memory);
        break;
    case 2:
        take(queue, input, memory);
        break;
    case 3:
        give_back(queue, input);
        break;
    case 4: {
        uint64_t at = guest_address(input);
        uint8_t len = input_u8(input) % sizeof(bytes);
        input_copy(input, bytes, len);
        guest_put(at, bytes, len);
        break;
    }
    case 5:
        if (iso_vq_ready(&queue->vq)) {
            iso_vq_disable_kick(&queue->vq);
            iso_vq_enable_kick(&queue->vq);
        }
        break;
    case 6:
        if (queue->vq.used)
            iso_vq_should_call(&queue->vq);
        break;
    default:
        set_up(queue, input, memory);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct queue queue;
    static int fd = -1;
    struct input input = {data, size};
    struct iso_guestmem *memory = guest_memory();

    if (fd < 0)
        CHECK((fd = memfd_create("table", MFD_CLOEXEC)) >= 0 && !ftruncate(fd, 1 << 20));
    add_regions(&input, fd);
    set_up(&queue, &input, memory);
    while (input_more(&input))
        step(&queue, &input, memory);
    free(queue.chain.segs);
    queue.chain = (struct iso_chain){0};
    return 0;
}
