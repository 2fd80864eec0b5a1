/*
 * virgl's own blobs: objects that a guest program announces in a stream and makes a resource of later.
 *
 * PIPE_RESOURCE_CREATE gives the v1 arguments of an object a number, the blob id; RESOURCE_CREATE_BLOB then asks for the
 * resource. virglrenderer would make the object at once, in memory of its own choice; here it is made with the resource, in
 * the memory that the master has for it, and virglrenderer never sees the command.
 */
#ifndef ISOREND_VIRGL_BLOBS_H
#define ISOREND_VIRGL_BLOBS_H

#include "idmap.h"
#include "texture.h"

#define ISO_VIRGL_MAX_BLOBS 4096u /* of one context, announced and not asked for */

struct iso_virgl_blobs {
    struct iso_idmap map; /* blob id -> struct iso_texture */
};

/* Remember what a PIPE_RESOURCE_CREATE announces. 0; EINVAL for what cannot be, or is there already; ENOMEM; ENOSPC. */
int iso_virgl_blobs_announce(struct iso_virgl_blobs *blobs, const uint32_t *command);
/* NULL if none has been announced by this id. */
const struct iso_texture *iso_virgl_blobs_find(const struct iso_virgl_blobs *blobs, uint64_t blob_id);
/* It has become a resource. */
void iso_virgl_blobs_forget(struct iso_virgl_blobs *blobs, uint64_t blob_id);
void iso_virgl_blobs_release(struct iso_virgl_blobs *blobs);

#endif
