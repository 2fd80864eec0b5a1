#include "backing.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct piece {
    uint64_t gpa;
    uint64_t start; /* offset in the backing */
    uint64_t len;
};

struct iso_backing {
    _Atomic uint32_t refs;
    uint32_t count;
    uint64_t bytes;
    struct piece pieces[];
};

struct mem_entry {
    uint64_t addr;
    uint32_t length, padding;
};

static int append(struct iso_backing *backing, const struct iso_guestmem *mem, struct mem_entry entry)
{
    if (!entry.length || !iso_guestmem_contains(mem, entry.addr, entry.length))
        return -EINVAL;
    struct piece *last = backing->count ? &backing->pieces[backing->count - 1] : NULL;
    if (last && last->gpa + last->len == entry.addr)
        last->len += entry.length;
    else
        backing->pieces[backing->count++] = (struct piece){entry.addr, backing->bytes, entry.length};
    backing->bytes += entry.length;
    return 0;
}

int iso_backing_new(const struct iso_guestmem *mem, const void *entries, uint32_t count, struct iso_backing **out)
{
    *out = NULL;
    if (!mem || !count || count > ISO_BACKING_MAX_ENTRIES)
        return -EINVAL;
    struct iso_backing *backing = malloc(sizeof(*backing) + count * sizeof(struct piece));
    if (!backing)
        return -ENOMEM;
    atomic_init(&backing->refs, 1);
    backing->count = 0;
    backing->bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct mem_entry entry;
        memcpy(&entry, (const uint8_t *)entries + i * sizeof(entry), sizeof(entry));
        int error = append(backing, mem, entry);
        if (error) {
            free(backing);
            return error;
        }
    }
    struct iso_backing *trimmed = realloc(backing, sizeof(*backing) + backing->count * sizeof(struct piece));
    *out = trimmed ? trimmed : backing;
    return 0;
}

struct iso_backing *iso_backing_ref(struct iso_backing *backing)
{
    if (backing)
        atomic_fetch_add(&backing->refs, 1);
    return backing;
}

void iso_backing_unref(struct iso_backing *backing)
{
    if (backing && atomic_fetch_sub(&backing->refs, 1) == 1)
        free(backing);
}

uint64_t iso_backing_bytes(const struct iso_backing *backing)
{
    return backing->bytes;
}

uint32_t iso_backing_pieces(const struct iso_backing *backing)
{
    return backing->count;
}

uint32_t iso_backing_segments(const struct iso_backing *backing, struct iso_segment *out, uint32_t capacity)
{
    uint32_t count = backing->count < capacity ? backing->count : capacity;
    for (uint32_t i = 0; i < count; i++)
        out[i] = (struct iso_segment){backing->pieces[i].gpa, backing->pieces[i].len};
    return count;
}

uint64_t iso_rows_extent(const struct iso_rows *rows)
{
    uint64_t layers, lines, sum;
    if (!rows->rows || !rows->layers)
        return 0;
    if (__builtin_mul_overflow(rows->layer_stride, (uint64_t)rows->layers - 1, &layers) ||
        __builtin_mul_overflow(rows->stride, (uint64_t)rows->rows - 1, &lines) ||
        __builtin_add_overflow(layers, lines, &sum) || __builtin_add_overflow(sum, (uint64_t)rows->row_bytes, &sum))
        return UINT64_MAX;
    return sum;
}

static uint32_t piece_at(const struct iso_backing *backing, uint64_t offset)
{
    uint32_t low = 0, high = backing->count - 1;
    while (low < high) {
        uint32_t middle = (low + high + 1) / 2;
        if (backing->pieces[middle].start <= offset)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* A cursor that goes through the backing in ascending order mostly, so the search is rarely needed. */
struct cursor {
    const struct iso_guestmem *mem;
    const struct iso_backing *backing;
    uint32_t piece;
};

/* The host address of `offset` and how many of `len` bytes lie there in one run. */
static uint8_t *locate(struct cursor *cursor, uint64_t offset, uint64_t len, uint64_t *run)
{
    const struct piece *piece = &cursor->backing->pieces[cursor->piece];
    if (offset < piece->start || offset - piece->start >= piece->len) {
        cursor->piece = piece_at(cursor->backing, offset);
        piece = &cursor->backing->pieces[cursor->piece];
    }
    uint64_t skip = offset - piece->start, left = piece->len - skip;
    return iso_guestmem_at(cursor->mem, piece->gpa + skip, len < left ? len : left, run);
}

static bool copy_run(struct cursor *cursor, uint64_t offset, uint8_t *ours, uint64_t len, bool to_guest)
{
    while (len) {
        uint64_t run;
        uint8_t *theirs = locate(cursor, offset, len, &run);
        if (!theirs)
            return false;
        if (to_guest)
            memcpy(theirs, ours, run);
        else
            memcpy(ours, theirs, run);
        ours += run;
        offset += run;
        len -= run;
    }
    return true;
}

static bool copy_rows(struct cursor *cursor, const struct iso_rows *at, uint8_t *ours, uint64_t our_stride,
                      uint64_t our_layer_stride, bool to_guest)
{
    uint64_t extent = iso_rows_extent(at);
    if (at->offset > cursor->backing->bytes || extent > cursor->backing->bytes - at->offset)
        return false;
    for (uint32_t layer = 0; layer < at->layers; layer++) {
        uint64_t theirs = at->offset + layer * at->layer_stride;
        uint8_t *mine = ours + layer * our_layer_stride;
        if (at->stride == at->row_bytes && our_stride == at->row_bytes) {
            if (!copy_run(cursor, theirs, mine, (uint64_t)at->row_bytes * at->rows, to_guest))
                return false;
            continue;
        }
        for (uint32_t row = 0; row < at->rows; row++)
            if (!copy_run(cursor, theirs + row * at->stride, mine + row * our_stride, at->row_bytes, to_guest))
                return false;
    }
    return true;
}

bool iso_backing_read_rows(const struct iso_guestmem *mem, const struct iso_backing *backing, const struct iso_rows *at,
                           uint8_t *ours, uint64_t our_stride, uint64_t our_layer_stride)
{
    struct cursor cursor = {mem, backing, 0};
    return mem && copy_rows(&cursor, at, ours, our_stride, our_layer_stride, false);
}

bool iso_backing_write_rows(const struct iso_guestmem *mem, const struct iso_backing *backing, const struct iso_rows *at,
                            const uint8_t *ours, uint64_t our_stride, uint64_t our_layer_stride)
{
    struct cursor cursor = {mem, backing, 0};
    return mem && copy_rows(&cursor, at, (uint8_t *)(uintptr_t)ours, our_stride, our_layer_stride, true);
}
