#include "virgl_contexts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "idmap.h"
#include "virgl_api.h"

enum { CAPSET_VIRGL = 1, CAPSET_VIRGL2 = 2 };

struct attachment {
    uint32_t ctx_id;
    struct attachment *next;
};

static struct iso_idmap contexts;  /* ctx_id -> anything */
static struct iso_idmap resources; /* resource_id -> its struct attachment list, never empty */

bool iso_virgl_context_exists(uint32_t ctx_id)
{
    return iso_idmap_get(&contexts, ctx_id);
}

int iso_virgl_context_create(uint32_t ctx_id, uint32_t capset_id, const char *name)
{
    int error;

    if (!ctx_id || ctx_id > INT32_MAX || iso_virgl_context_exists(ctx_id))
        return EINVAL;
    if (capset_id == 0)
        capset_id = CAPSET_VIRGL2;
    if (capset_id != CAPSET_VIRGL && capset_id != CAPSET_VIRGL2)
        return EINVAL;
    if (!iso_idmap_put(&contexts, ctx_id, &contexts))
        return ENOMEM;
    error = abs(virgl_renderer_context_create_with_flags(ctx_id, capset_id, (uint32_t)strnlen(name, ISO_VIRGL_NAME_MAX), name));
    if (error)
        iso_idmap_remove(&contexts, ctx_id);
    return error;
}

/* Removing moves other entries, so every walk ends with the first removal. */
static bool detach_one(uint32_t ctx_id)
{
    for (uint32_t i = 0; i < resources.capacity; i++)
        if (resources.slots[i].id && iso_virgl_resource_detach(ctx_id, resources.slots[i].id) == 0)
            return true;
    return false;
}

int iso_virgl_context_destroy(uint32_t ctx_id)
{
    if (!iso_virgl_context_exists(ctx_id))
        return ENOENT;
    while (detach_one(ctx_id))
        ;
    iso_idmap_remove(&contexts, ctx_id);
    virgl_renderer_context_destroy(ctx_id);
    return 0;
}

/* Resources. */

static bool has(uint32_t ctx_id, uint32_t resource_id)
{
    for (const struct attachment *at = iso_idmap_get(&resources, resource_id); at; at = at->next)
        if (at->ctx_id == ctx_id)
            return true;
    return false;
}

static int create(const struct iso_virgl_resource *resource)
{
    struct virgl_renderer_resource_create_args arguments = {
        .handle = resource->resource_id,
        .target = resource->target,
        .format = resource->format,
        .bind = resource->bind,
        .width = resource->width,
        .height = resource->height,
        .depth = resource->depth,
        .array_size = resource->array_size,
        .last_level = resource->last_level,
        .nr_samples = resource->nr_samples,
        .flags = resource->flags,
    };

    return abs(virgl_renderer_resource_create(&arguments, NULL, 0));
}

int iso_virgl_resource_attach(uint32_t ctx_id, const struct iso_virgl_resource *resource)
{
    const uint32_t id = resource->resource_id;
    struct attachment *attachment;
    int error = 0;

    if (!iso_virgl_context_exists(ctx_id) || !id || id > INT32_MAX || has(ctx_id, id))
        return EINVAL;
    attachment = malloc(sizeof(*attachment));
    if (!attachment)
        return ENOMEM;
    *attachment = (struct attachment){.ctx_id = ctx_id, .next = iso_idmap_get(&resources, id)};
    if (!attachment->next)
        error = create(resource);
    if (!error && !iso_idmap_put(&resources, id, attachment)) {
        virgl_renderer_resource_unref(id); /* of a first attachment: any other replaces an entry */
        error = ENOMEM;
    }
    if (error)
        free(attachment);
    else
        virgl_renderer_ctx_attach_resource((int)ctx_id, (int)id);
    return error;
}

int iso_virgl_resource_detach(uint32_t ctx_id, uint32_t resource_id)
{
    struct attachment *first = iso_idmap_get(&resources, resource_id), **at = &first, *found;

    while (*at && (*at)->ctx_id != ctx_id)
        at = &(*at)->next;
    found = *at;
    if (!found)
        return ENOENT;
    virgl_renderer_ctx_detach_resource((int)ctx_id, (int)resource_id);
    *at = found->next;
    free(found);
    if (first) {
        iso_idmap_put(&resources, resource_id, first);
    } else {
        iso_idmap_remove(&resources, resource_id);
        virgl_renderer_resource_unref(resource_id);
    }
    return 0;
}
