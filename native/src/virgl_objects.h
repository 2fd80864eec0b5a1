/*
 * The resources of this process' contexts, as objects of virglrenderer's. A resource that several contexts have, where
 * contexts share a worker, is one object.
 *
 * Theory of operation
 *
 * An object is virglrenderer's own, or it lies in storage that the master sent a descriptor of: a texture as an EGLImage that
 * virglrenderer is given, a buffer pinned to a mapping (virgl_pins.h). Either kind may have a mirror besides. A resource of
 * which nobody knows what it is has no object until a stream tells (PIPE_RESOURCE_SET_TYPE); until then its descriptor is
 * kept. No other descriptor is.
 *
 * What is in storage is the master's to size; all of it is checked here once more, since drivers do not look. EGLImages are
 * made in Python (context_worker/egl_images.py), which iso_virgl_set_images() has called back.
 *
 * Functions that can fail return 0 or a positive errno: EINVAL for arguments that do not fit, ENOENT for what is not there,
 * ENOMEM, and others for what the driver or virglrenderer refuses.
 */
#ifndef ISOREND_VIRGL_OBJECTS_H
#define ISOREND_VIRGL_OBJECTS_H

#include <stdbool.h>
#include <stdint.h>

#include "texture.h"

/* VIRTIO_GPU_CMD_RESOURCE_CREATE_3D, virtio 1.3 section 5.7.6.8. */
struct iso_virgl_resource {
    uint32_t resource_id;
    struct iso_texture v1;
};

enum iso_virgl_storage_kind { ISO_VIRGL_DMABUF, ISO_VIRGL_MEMFD };

/* native.storage.Layout. */
struct iso_virgl_storage {
    uint32_t kind, stride, fourcc;
    uint64_t nbytes, offset, modifier;
};

/*
 * Make an EGLImage of a texture in `fd`. *format is the one virglrenderer is to be told. A storage without stride is laid out
 * here, and says so then. Returns 0 or a positive errno.
 */
typedef int (*iso_virgl_image_import)(int fd, struct iso_virgl_storage *storage, const struct iso_virgl_resource *resource,
                                      void **image, uint32_t *format);
typedef void (*iso_virgl_image_drop)(void *image);
void iso_virgl_set_images(iso_virgl_image_import import, iso_virgl_image_drop drop);

/* Attach a resource to a context, and make it if no context has it. EINVAL also where the context has it already. */
int iso_virgl_resource_attach(uint32_t ctx_id, const struct iso_virgl_resource *resource);
/* The same, of an object that lies in `fd`, which stays the caller's. Width 0: nobody knows yet what it is. */
int iso_virgl_resource_import(uint32_t ctx_id, const struct iso_virgl_resource *resource,
                              const struct iso_virgl_storage *storage, int fd);
/* Give the object that the context has a mirror of nbytes in `fd`; attach one that is made for it if it has none. */
int iso_virgl_resource_mirror(uint32_t ctx_id, const struct iso_virgl_resource *resource, uint64_t nbytes, int fd);
/*
 * Make the context's blob (virgl_blobs.h) a resource, and attach it: in `fd`, of storage->nbytes, or where the driver likes
 * with fd -1. *resource, but its id, and *storage are told.
 */
int iso_virgl_resource_from_blob(uint32_t ctx_id, struct iso_virgl_resource *resource, uint64_t blob_id,
                                 struct iso_virgl_storage *storage, int fd);
/* And the way back: the last one to let go drops it. ENOENT if the context does not have it. */
int iso_virgl_resource_detach(uint32_t ctx_id, uint32_t resource_id);
void iso_virgl_resource_detach_all(uint32_t ctx_id);

/* What a PIPE_RESOURCE_SET_TYPE in a context's stream says of a resource; nothing if it is known already. */
int iso_virgl_resource_set_type(uint32_t ctx_id, const uint32_t *command);

/* The GL texture that the context's object is, and what it is of. ENOTSUP if it is none. */
int iso_virgl_resource_texture(uint32_t ctx_id, uint32_t resource_id, uint32_t *texture, struct iso_virgl_resource *resource);

/* Between an object and its mirror. ENOENT where there is none. */
int iso_virgl_resource_copy_out(uint32_t resource_id);
int iso_virgl_resource_copy_in(uint32_t resource_id);

#endif
