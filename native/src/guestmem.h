/*
 * Guest RAM as the front end described it (vhost-user SET_MEM_TABLE): a set of mapped regions.
 *
 * A guest address is translated anew at every use, one contiguous piece at a time: a buffer may cross from one region into
 * the next. The object is reference counted, so that a copy can go on while the front end replaces the table.
 */
#ifndef ISOREND_GUESTMEM_H
#define ISOREND_GUESTMEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ISO_GUESTMEM_MAX_REGIONS 64

struct iso_guestmem;

struct iso_guestmem *iso_guestmem_new(void);
struct iso_guestmem *iso_guestmem_ref(struct iso_guestmem *mem);
void iso_guestmem_unref(struct iso_guestmem *mem); /* unmaps at the last reference */

/*
 * Maps `size` bytes of `fd` at `offset` as guest-physical [gpa, gpa + size), known to the front end as [uva, uva + size).
 * Returns 0 or -errno: -EINVAL for an empty, wrapping or overlapping region or a file shorter than offset + size, -ENOSPC
 * for too many. Not to be called once the object is shared between threads.
 */
int iso_guestmem_add(struct iso_guestmem *mem, int fd, uint64_t gpa, uint64_t size, uint64_t uva, uint64_t offset);

/*
 * In all that follows `mem` may be NULL, which is no RAM at all: the front end can take memory away while work waits.
 */

/* The host address of gpa and, in *contiguous, how many of the next `len` bytes lie there. NULL if gpa is not RAM. */
uint8_t *iso_guestmem_at(const struct iso_guestmem *mem, uint64_t gpa, uint64_t len, uint64_t *contiguous);
/* The host address of a front-end address if all `len` bytes lie in one region, else NULL. */
void *iso_guestmem_at_uva(const struct iso_guestmem *mem, uint64_t uva, uint64_t len);
/* Whether every byte of [gpa, gpa + len) is RAM. */
bool iso_guestmem_contains(const struct iso_guestmem *mem, uint64_t gpa, uint64_t len);
/* Copy; false if a byte of the range is not RAM (what came before it has been copied). */
bool iso_guestmem_read(const struct iso_guestmem *mem, uint64_t gpa, void *to, size_t len);
bool iso_guestmem_write(const struct iso_guestmem *mem, uint64_t gpa, const void *from, size_t len);

#endif
