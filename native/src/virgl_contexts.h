/*
 * The contexts in this process and what they have attached. Usually there is one context; there are several where contexts
 * share a worker, and then a resource that several of them have is one object.
 */
#ifndef ISOREND_VIRGL_CONTEXTS_H
#define ISOREND_VIRGL_CONTEXTS_H

#include <stdbool.h>
#include <stdint.h>

#define ISO_VIRGL_NAME_MAX 64

/* VIRTIO_GPU_CMD_RESOURCE_CREATE_3D, virtio 1.3 section 5.7.6.8. */
struct iso_virgl_resource {
    uint32_t resource_id;
    uint32_t target, format, bind;
    uint32_t width, height, depth, array_size;
    uint32_t last_level, nr_samples, flags;
};

/* All return 0 or a positive errno. capset_id 0 is a context of a guest without CONTEXT_INIT. */
int iso_virgl_context_create(uint32_t ctx_id, uint32_t capset_id, const char *name);
/* With it go its attachments. ENOENT if there is no such context. */
int iso_virgl_context_destroy(uint32_t ctx_id);
bool iso_virgl_context_exists(uint32_t ctx_id);

/* Attach a resource to a context, and make it if no context has it. EINVAL also where the context has it already. */
int iso_virgl_resource_attach(uint32_t ctx_id, const struct iso_virgl_resource *resource);
/* And the way back: the last one to let go drops it. ENOENT if the context does not have it. */
int iso_virgl_resource_detach(uint32_t ctx_id, uint32_t resource_id);

#endif
