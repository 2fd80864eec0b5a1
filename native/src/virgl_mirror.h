/*
 * Copies between an object of virglrenderer's and its mirror (mirror.h).
 *
 * They are transfers of virglrenderer's in its own context, number 0, so that a guest context in which something went wrong
 * does not keep its contents to itself. Each layer is one transfer, in contiguous memory.
 */
#ifndef ISOREND_VIRGL_MIRROR_H
#define ISOREND_VIRGL_MIRROR_H

#include <stdbool.h>

#include "mirror.h"

struct iso_virgl_mirror {
    uint32_t resource_id;
    struct iso_texture texture;
    struct iso_mirror_header *header; /* start of the mapping */
    uint64_t mapped;
    uint64_t seen; /* version that the object is at least as new as */
    bool written;  /* the object, since the last copy either way */
};

/*
 * Map the mirror of an object, whose contents nobody has seen if `written`. Returns 0; ENOTSUP for what cannot be copied;
 * EINVAL if nbytes are too few; ENOMEM; EPROTO for memory that is smaller or could shrink; what mmap says.
 */
int iso_virgl_mirror_new(uint32_t resource_id, const struct iso_texture *texture, bool written, uint64_t nbytes, int fd,
                         struct iso_virgl_mirror **out);
void iso_virgl_mirror_free(struct iso_virgl_mirror *mirror);

/* Both return 0 or an errno of virglrenderer's, and do nothing if there is nothing to do. */
int iso_virgl_mirror_copy_out(struct iso_virgl_mirror *mirror);
int iso_virgl_mirror_copy_in(struct iso_virgl_mirror *mirror);

#endif
