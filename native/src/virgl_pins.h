/*
 * Places in this process' memory that buffers of the driver's are pinned to: mappings of a resource's storage.
 *
 * A driver that was told an address may use it for longer than the resource is there: a context of the guest's in which the
 * buffer is still bound can draw with it. So a place is never unmapped. When its buffer is gone it is empty memory, and then
 * another buffer's: who used it beyond its time sees or spoils that, in a process that has no other guest program's memory.
 * Sizes of places are powers of two, so that few are made.
 */
#ifndef ISOREND_VIRGL_PINS_H
#define ISOREND_VIRGL_PINS_H

#include <stdint.h>

struct iso_pin {
    uint8_t *memory; /* the first byte of what is mapped */
    uint32_t order;  /* the place has 2^order bytes */
    struct iso_pin *next;
};

/* Map `bytes` of `fd`, which cannot shrink, from `offset` (whole pages) on. NULL with errno. */
struct iso_pin *iso_pin_new(int fd, uint64_t offset, uint64_t bytes);
/* The place is empty memory from now on. */
void iso_pin_release(struct iso_pin *pin);

#endif
