/* The contexts in this process. Usually there is one; there are several where contexts share a worker. */
#ifndef ISOREND_VIRGL_CONTEXTS_H
#define ISOREND_VIRGL_CONTEXTS_H

#include <stdint.h>

#include "virgl_blobs.h"
#include "virgl_usage.h"

#define ISO_VIRGL_NAME_MAX 64

struct iso_virgl_context {
    struct iso_virgl_usage *usage;
    struct iso_virgl_blobs blobs;
};

/* Both return 0 or a positive errno. capset_id 0 is a context of a guest without CONTEXT_INIT. */
int iso_virgl_context_create(uint32_t ctx_id, uint32_t capset_id, const char *name);
/* With it go its attachments. ENOENT if there is no such context. */
int iso_virgl_context_destroy(uint32_t ctx_id);
/* NULL if there is no such context. */
struct iso_virgl_context *iso_virgl_context_get(uint32_t ctx_id);

#endif
