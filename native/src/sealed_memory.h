/*
 * Mapping memory that another process made: of a file that can shrink, a mapping ends in SIGBUS, so only what cannot is taken.
 */
#ifndef ISOREND_SEALED_MEMORY_H
#define ISOREND_SEALED_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Bytes of `fd`, at least so many, that can be mapped for good. `dmabuf`: it may be one, which has no seals and keeps its
 * size. 0 with errno: EPROTO (smaller, or it could shrink), or what fcntl and fstat say.
 */
uint64_t iso_sealed_bytes(int fd, uint64_t at_least, bool dmabuf);
/* Map all of them, to be read and written; *bytes says how many. NULL with errno: as above, or from mmap. */
void *iso_map_sealed(int fd, uint64_t at_least, bool dmabuf, uint64_t *bytes);

#endif
