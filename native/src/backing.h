/*
 * A resource's backing: the pages of guest memory that RESOURCE_ATTACH_BACKING named, as one byte range (the iov of the
 * resource table's triple). Neighbouring pages are merged, so thousands of entries usually become a few pieces; a lookup is
 * a binary search. Pieces hold guest addresses, not host pointers: they outlive a change of the memory table.
 */
#ifndef ISOREND_BACKING_H
#define ISOREND_BACKING_H

#include "guestmem.h"

#define ISO_BACKING_MAX_ENTRIES (1u << 20)

struct iso_backing;

/*
 * Parses `count` entries of struct virtio_gpu_mem_entry {le64 addr, le32 length, le32 padding}. Every entry must be RAM and
 * not empty. Returns 0, -EINVAL or -ENOMEM. The caller owns *out (one reference).
 */
int iso_backing_new(const struct iso_guestmem *mem, const void *entries, uint32_t count, struct iso_backing **out);
struct iso_backing *iso_backing_ref(struct iso_backing *backing);
void iso_backing_unref(struct iso_backing *backing);
uint64_t iso_backing_bytes(const struct iso_backing *backing);
uint32_t iso_backing_pieces(const struct iso_backing *backing);

/* A piece as the guest sees it. */
struct iso_segment {
    uint64_t gpa, len; /* bytes */
};
/* The first `capacity` pieces in their order. Returns how many there were to write. */
uint32_t iso_backing_segments(const struct iso_backing *backing, struct iso_segment *out, uint32_t capacity);

/*
 * Rows of bytes in a backing and, the same rows packed or otherwise strided, in our own memory:
 * byte (layer, row, i) is at offset + layer * layer_stride + row * stride + i.
 */
struct iso_rows {
    uint64_t offset;
    uint64_t stride, layer_stride; /* bytes */
    uint32_t row_bytes, rows, layers;
};

/* Bytes from `offset` to the end of the last row, or UINT64_MAX if that does not fit. */
uint64_t iso_rows_extent(const struct iso_rows *rows);

/*
 * Copies rows between the backing (laid out as `at`) and `ours` (laid out with our_stride and our_layer_stride). Returns
 * false if a row reaches past the backing or out of RAM; rows before it have been copied.
 */
bool iso_backing_read_rows(const struct iso_guestmem *mem, const struct iso_backing *backing, const struct iso_rows *at,
                           uint8_t *ours, uint64_t our_stride, uint64_t our_layer_stride);
bool iso_backing_write_rows(const struct iso_guestmem *mem, const struct iso_backing *backing, const struct iso_rows *at,
                            const uint8_t *ours, uint64_t our_stride, uint64_t our_layer_stride);

#endif
