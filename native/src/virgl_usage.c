#include "virgl_usage.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "idmap.h"
#include "virgl_stream.h"

#define ANY_RESOURCE UINT32_MAX /* bound, but nobody knows what */

/* What of a sub-context is bound where shaders write to besides: ids of resources, 0 for nothing. */
struct outputs {
    uint32_t streamouts[ISO_VIRGL_STREAMOUTS];
    uint32_t buffers[ISO_VIRGL_SHADER_STAGES][ISO_VIRGL_STAGE_SLOTS];
    uint32_t images[ISO_VIRGL_SHADER_STAGES][ISO_VIRGL_STAGE_SLOTS];
    uint32_t atomics[ISO_VIRGL_STAGE_SLOTS];
};

struct sub_context {
    uint32_t id;
    struct iso_idmap objects; /* handle -> see as_value() */
    uint32_t framebuffer[ISO_VIRGL_COLOR_BUFFERS + 1]; /* ids of resources; the last one: depth and stencil */
    struct outputs outputs;
    bool has_outputs; /* something was bound to them */
};

struct iso_virgl_usage {
    struct sub_context first; /* id 0, which is always there */
    struct iso_idmap others;  /* id -> struct sub_context */
    struct sub_context *current;
    uint32_t objects; /* of all sub-contexts */
    bool lost;        /* everything counts as written */
    bool is_marked;   /* what is bound in the current sub-context, since that changed or the stream began */
};

static struct iso_idmap watched; /* resource_id -> bool */

/* What is watched. */

bool iso_virgl_watch(uint32_t resource_id, bool *written)
{
    return iso_idmap_put(&watched, resource_id, written);
}

void iso_virgl_unwatch(uint32_t resource_id)
{
    iso_idmap_remove(&watched, resource_id);
}

static void mark_all(void)
{
    for (uint32_t i = 0; i < watched.capacity; i++)
        if (watched.slots[i].id)
            *(bool *)watched.slots[i].value = true;
}

void iso_virgl_mark_written(uint32_t resource_id)
{
    bool *written = resource_id == ANY_RESOURCE ? NULL : iso_idmap_get(&watched, resource_id);

    if (written)
        *written = true;
    else if (resource_id == ANY_RESOURCE)
        mark_all();
}

static void mark_each(const uint32_t *resource_ids, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (resource_ids[i])
            iso_virgl_mark_written(resource_ids[i]);
}

static void mark_outputs(struct iso_virgl_usage *usage)
{
    if (!watched.used || usage->is_marked)
        return;
    usage->is_marked = true;
    mark_each(usage->current->framebuffer, ISO_VIRGL_COLOR_BUFFERS + 1);
    if (usage->current->has_outputs)
        mark_each((const uint32_t *)&usage->current->outputs, sizeof(struct outputs) / sizeof(uint32_t));
}

/* What stands for what. */

/* A resource's id as what a map holds: never NULL. */
static void *as_value(uint32_t resource_id)
{
    return (void *)((uintptr_t)resource_id << 1 | 1);
}

static uint32_t resource_of(const struct sub_context *sub, uint32_t handle)
{
    const void *value = iso_idmap_get(&sub->objects, handle);

    if (!handle)
        return 0;
    return value ? (uint32_t)((uintptr_t)value >> 1) : ANY_RESOURCE;
}

static void create_object(struct iso_virgl_usage *usage, uint32_t handle, uint32_t resource_id)
{
    struct sub_context *sub = usage->current;
    const uint32_t before = sub->objects.used;

    if (!handle)
        return;
    if (usage->objects >= ISO_VIRGL_MAX_FOLLOWED || !iso_idmap_put(&sub->objects, handle, as_value(resource_id)))
        usage->lost = true;
    usage->objects += sub->objects.used - before;
}

static void destroy_object(struct iso_virgl_usage *usage, uint32_t handle)
{
    if (iso_idmap_remove(&usage->current->objects, handle))
        usage->objects--;
}

/* Sub-contexts. */

static struct sub_context *find_sub(struct iso_virgl_usage *usage, uint32_t id)
{
    return id ? iso_idmap_get(&usage->others, id) : &usage->first;
}

static void use_sub(struct iso_virgl_usage *usage, struct sub_context *sub)
{
    if (sub && sub != usage->current) {
        usage->current = sub;
        usage->is_marked = false;
    }
}

/* The new one is used at once, one that is there already is not. */
static void create_sub(struct iso_virgl_usage *usage, uint32_t id)
{
    struct sub_context *sub;

    if (find_sub(usage, id))
        return;
    sub = usage->others.used < ISO_VIRGL_MAX_SUB_CONTEXTS ? calloc(1, sizeof(*sub)) : NULL;
    if (!sub || !iso_idmap_put(&usage->others, id, sub)) {
        free(sub);
        usage->lost = true;
        return;
    }
    sub->id = id;
    use_sub(usage, sub);
}

static void destroy_sub(struct iso_virgl_usage *usage, uint32_t id)
{
    struct sub_context *sub = iso_idmap_remove(&usage->others, id);

    if (!sub)
        return;
    if (usage->current == sub)
        use_sub(usage, &usage->first);
    usage->objects -= sub->objects.used;
    iso_idmap_release(&sub->objects);
    free(sub);
}

struct iso_virgl_usage *iso_virgl_usage_new(void)
{
    struct iso_virgl_usage *usage = calloc(1, sizeof(*usage));

    if (usage)
        usage->current = &usage->first;
    return usage;
}

void iso_virgl_usage_free(struct iso_virgl_usage *usage)
{
    if (!usage)
        return;
    for (uint32_t i = 0; i < usage->others.capacity; i++)
        if (usage->others.slots[i].id) {
            struct sub_context *sub = usage->others.slots[i].value;
            iso_idmap_release(&sub->objects);
            free(sub);
        }
    iso_idmap_release(&usage->others);
    iso_idmap_release(&usage->first.objects);
    free(usage);
}

void iso_virgl_usage_begin(struct iso_virgl_usage *usage)
{
    usage->is_marked = false;
    if (usage->lost)
        mark_all();
}

void iso_virgl_usage_lose(struct iso_virgl_usage *usage)
{
    usage->lost = true;
    mark_all();
}

/* What commands bind. */

static void set_framebuffer(struct iso_virgl_usage *usage, const uint32_t *word, uint32_t length)
{
    struct sub_context *to = usage->current;

    if (length < 2 || word[1] > ISO_VIRGL_COLOR_BUFFERS || length != 2 + word[1])
        return;
    memset(to->framebuffer, 0, sizeof(to->framebuffer));
    for (uint32_t i = 0; i < word[1]; i++)
        to->framebuffer[i] = resource_of(to, word[3 + i]);
    to->framebuffer[ISO_VIRGL_COLOR_BUFFERS] = resource_of(to, word[2]);
    usage->is_marked = false;
}

static void bind_output(struct iso_virgl_usage *usage, uint32_t *at, uint32_t resource_id)
{
    *at = resource_id;
    usage->current->has_outputs = usage->current->has_outputs || resource_id;
    usage->is_marked = false;
}

static void set_streamouts(struct iso_virgl_usage *usage, const uint32_t *word, uint32_t length)
{
    struct outputs *to = &usage->current->outputs;

    if (length < 1 || length - 1 > ISO_VIRGL_STREAMOUTS)
        return;
    memset(to->streamouts, 0, sizeof(to->streamouts));
    for (uint32_t i = 0; i < length - 1; i++)
        bind_output(usage, &to->streamouts[i], resource_of(usage->current, word[2 + i]));
}

/* {stage, first slot, elements of `size` words}, of each of which word `at` is the resource's id. */
static void set_stage(struct iso_virgl_usage *usage, uint32_t to[][ISO_VIRGL_STAGE_SLOTS], const uint32_t *word, uint32_t length,
                      uint32_t size, uint32_t at)
{
    if (length < 2 || word[1] >= ISO_VIRGL_SHADER_STAGES || word[2] > ISO_VIRGL_STAGE_SLOTS ||
        (length - 2) / size > ISO_VIRGL_STAGE_SLOTS - word[2])
        return;
    for (uint32_t i = 0; i < (length - 2) / size; i++)
        bind_output(usage, &to[word[1]][word[2] + i], word[3 + i * size + at]);
}

static void set_atomics(struct iso_virgl_usage *usage, const uint32_t *word, uint32_t length)
{
    uint32_t *to = usage->current->outputs.atomics;

    if (length < 2 || word[1] > ISO_VIRGL_STAGE_SLOTS || (length - 1) / 3 > ISO_VIRGL_STAGE_SLOTS - word[1])
        return;
    for (uint32_t i = 0; i < (length - 1) / 3; i++)
        bind_output(usage, &to[word[1] + i], word[2 + i * 3 + 2]);
}

static void follow_creation(struct iso_virgl_usage *usage, const uint32_t *word, uint32_t length)
{
    switch (iso_virgl_object(word[0])) {
    case ISO_VIRGL_OBJECT_SURFACE:
    case ISO_VIRGL_OBJECT_MSAA_SURFACE:
    case ISO_VIRGL_OBJECT_STREAMOUT_TARGET:
        if (length >= 2)
            create_object(usage, word[1], word[2]);
        break;
    case ISO_VIRGL_OBJECT_QUERY:
        if (length >= 4)
            create_object(usage, word[1], word[4]);
        break;
    }
}

/* Whether it was one of those that change what is bound. */
static bool follow_binding(struct iso_virgl_usage *usage, const uint32_t *word, uint32_t length)
{
    struct outputs *outputs = &usage->current->outputs;

    switch (iso_virgl_number(word[0])) {
    case ISO_VIRGL_CREATE_OBJECT:
        follow_creation(usage, word, length);
        return true;
    case ISO_VIRGL_DESTROY_OBJECT:
        if (length == 1)
            destroy_object(usage, word[1]);
        return true;
    case ISO_VIRGL_SET_FRAMEBUFFER_STATE:
        set_framebuffer(usage, word, length);
        return true;
    case ISO_VIRGL_SET_STREAMOUT_TARGETS:
        set_streamouts(usage, word, length);
        return true;
    case ISO_VIRGL_SET_SHADER_BUFFERS: /* {offset, length, resource} */
        set_stage(usage, outputs->buffers, word, length, 3, 2);
        return true;
    case ISO_VIRGL_SET_SHADER_IMAGES: /* {format, access, layers, level, resource}; access is taken for writing */
        set_stage(usage, outputs->images, word, length, 5, 4);
        return true;
    case ISO_VIRGL_SET_ATOMIC_BUFFERS: /* {offset, length, resource} */
        set_atomics(usage, word, length);
        return true;
    case ISO_VIRGL_SET_SUB_CTX:
        if (length == 1)
            use_sub(usage, find_sub(usage, word[1]));
        return true;
    case ISO_VIRGL_CREATE_SUB_CTX:
        if (length == 1)
            create_sub(usage, word[1]);
        return true;
    case ISO_VIRGL_DESTROY_SUB_CTX:
        if (length == 1)
            destroy_sub(usage, word[1]);
        return true;
    }
    return false;
}

/* What commands write. */

static void mark_word(const uint32_t *word, uint32_t length, uint32_t at)
{
    if (at <= length && word[at])
        iso_virgl_mark_written(word[at]);
}

static void mark_object(const struct iso_virgl_usage *usage, const uint32_t *word, uint32_t length, uint32_t at)
{
    uint32_t resource_id = at <= length ? resource_of(usage->current, word[at]) : 0;

    if (resource_id)
        iso_virgl_mark_written(resource_id);
}

static void follow_writing(struct iso_virgl_usage *usage, const uint32_t *word, uint32_t length)
{
    const uint32_t number = iso_virgl_number(word[0]);

    switch (number) {
    case ISO_VIRGL_CLEAR:
    case ISO_VIRGL_DRAW_VBO:
    case ISO_VIRGL_LAUNCH_GRID:
        mark_outputs(usage);
        break;
    case ISO_VIRGL_COPY_TRANSFER3D: /* either of the two, by its flags */
        mark_word(word, length, 12);
        mark_word(word, length, 1);
        break;
    case ISO_VIRGL_RESOURCE_INLINE_WRITE:
    case ISO_VIRGL_RESOURCE_COPY_REGION:
    case ISO_VIRGL_TRANSFER3D: /* also when it goes the other way */
    case ISO_VIRGL_CLEAR_TEXTURE:
    case ISO_VIRGL_GET_MEMORY_INFO:
        mark_word(word, length, 1);
        break;
    case ISO_VIRGL_GET_QUERY_RESULT_QBO:
        mark_word(word, length, 2);
        break;
    case ISO_VIRGL_BLIT:
        mark_word(word, length, 4);
        break;
    case ISO_VIRGL_GET_QUERY_RESULT:
        mark_object(usage, word, length, 1);
        break;
    case ISO_VIRGL_CLEAR_SURFACE:
        mark_object(usage, word, length, 2);
        break;
    default:
        if (number > ISO_VIRGL_LINK_SHADER)
            mark_all();
    }
}

void iso_virgl_usage_follow(struct iso_virgl_usage *usage, const uint32_t *command)
{
    const uint32_t length = iso_virgl_length(command[0]);

    if (!follow_binding(usage, command, length) && watched.used)
        follow_writing(usage, command, length);
}
