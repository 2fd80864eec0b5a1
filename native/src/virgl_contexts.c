#include "virgl_contexts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "idmap.h"
#include "virgl_api.h"
#include "virgl_objects.h"

enum { CAPSET_VIRGL = 1, CAPSET_VIRGL2 = 2 };

static struct iso_idmap contexts; /* ctx_id -> struct iso_virgl_context */

struct iso_virgl_context *iso_virgl_context_get(uint32_t ctx_id)
{
    return iso_idmap_get(&contexts, ctx_id);
}

static struct iso_virgl_context *new_context(void)
{
    struct iso_virgl_context *context = calloc(1, sizeof(*context));

    if (context && (context->usage = iso_virgl_usage_new()))
        return context;
    free(context);
    return NULL;
}

static void drop(struct iso_virgl_context *context)
{
    iso_virgl_usage_free(context->usage);
    iso_virgl_blobs_release(&context->blobs);
    free(context);
}

int iso_virgl_context_create(uint32_t ctx_id, uint32_t capset_id, const char *name)
{
    int error;

    if (!ctx_id || ctx_id > INT32_MAX || iso_virgl_context_get(ctx_id))
        return EINVAL;
    if (capset_id == 0)
        capset_id = CAPSET_VIRGL2;
    if (capset_id != CAPSET_VIRGL && capset_id != CAPSET_VIRGL2)
        return EINVAL;
    struct iso_virgl_context *context = new_context();
    if (!context)
        return ENOMEM;
    error = iso_idmap_put(&contexts, ctx_id, context) ? 0 : ENOMEM;
    if (!error)
        error = abs(virgl_renderer_context_create_with_flags(ctx_id, capset_id, (uint32_t)strnlen(name, ISO_VIRGL_NAME_MAX), name));
    if (error) {
        iso_idmap_remove(&contexts, ctx_id);
        drop(context);
    }
    return error;
}

int iso_virgl_context_destroy(uint32_t ctx_id)
{
    if (!iso_virgl_context_get(ctx_id))
        return ENOENT;
    iso_virgl_resource_detach_all(ctx_id);
    drop(iso_idmap_remove(&contexts, ctx_id));
    virgl_renderer_context_destroy(ctx_id);
    return 0;
}
