#include "virgl_objects.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "idmap.h"
#include "sealed_memory.h"
#include "virgl_api.h"
#include "virgl_blobs.h"
#include "virgl_contexts.h"
#include "virgl_gl_buffer.h"
#include "virgl_mirror.h"
#include "virgl_pins.h"
#include "virgl_stream.h"

enum { NO_FD = -1, TARGET_2D = 2, MAX_PLANES = 4 };

#define BIND_CUSTOM (1u << 17)

/* VIRGL_RESOURCE_FLAG_MAP_PERSISTENT and _COHERENT: of them virglrenderer makes storage that cannot be exchanged. */
#define MAP_FLAGS 6u

struct attachment {
    uint32_t ctx_id;
    struct attachment *next;
};

struct object {
    struct iso_virgl_resource resource; /* width 0: not known yet, and virglrenderer does not know of it */
    struct attachment *attachments;     /* never empty, once it is made */
    int fd;                             /* of one that is not known yet */
    struct iso_virgl_storage storage;   /* likewise */
    struct iso_pin *pin;                /* where a buffer's data is; NULL: elsewhere */
    uint32_t buffer;                    /* its GL buffer; 0: virglrenderer reads and writes `iov` */
    struct iovec iov;
    struct iso_virgl_mirror *mirror;
};

static struct iso_idmap objects; /* resource_id -> struct object */

static struct {
    iso_virgl_image_import import;
    iso_virgl_image_drop drop;
} images;

void iso_virgl_set_images(iso_virgl_image_import import, iso_virgl_image_drop drop)
{
    images.import = import;
    images.drop = drop;
}

/* Making. */

static struct virgl_renderer_resource_create_args arguments_of(const struct iso_virgl_resource *resource, uint32_t flags)
{
    return (struct virgl_renderer_resource_create_args){
        .handle = resource->resource_id,
        .target = resource->v1.target,
        .format = resource->v1.format,
        .bind = resource->v1.bind,
        .width = resource->v1.width,
        .height = resource->v1.height,
        .depth = resource->v1.depth,
        .array_size = resource->v1.array_size,
        .last_level = resource->v1.last_level,
        .nr_samples = resource->v1.nr_samples,
        .flags = flags,
    };
}

static int make_own(const struct iso_virgl_resource *resource, uint32_t flags)
{
    struct virgl_renderer_resource_create_args arguments = arguments_of(resource, flags);

    return abs(virgl_renderer_resource_create(&arguments, NULL, 0));
}

/* virglrenderer does not look whether OpenGL took the image. */
static int make_of_image(const struct iso_virgl_resource *resource, struct iso_virgl_storage *storage, int fd)
{
    struct virgl_renderer_resource_create_args arguments = arguments_of(resource, resource->v1.flags & ~MAP_FLAGS);
    void *image;
    int error = images.import ? images.import(fd, storage, resource, &image, &arguments.format) : ENOTSUP;

    if (error)
        return error;
    iso_gl_take_error();
    error = abs(virgl_renderer_resource_import_eglimage(&arguments, image));
    if (!error && iso_gl_take_error()) {
        virgl_renderer_resource_unref(resource->resource_id);
        error = EIO;
    }
    images.drop(image);
    return error;
}

/* The GL name of an object; 0 if virglrenderer has none for it. */
static uint32_t gl_name(uint32_t resource_id)
{
    struct virgl_renderer_resource_info info = {0};

    virgl_renderer_resource_get_info((int)resource_id, &info);
    return info.tex_id;
}

/*
 * A buffer has a GL buffer, or virglrenderer looks after it itself and uses its iov: for staging, and for query results, of
 * which it has a copy that it writes to the iov when it gets one.
 */
static int pin_data(struct object *object)
{
    const uint32_t id = object->resource.resource_id, width = object->resource.v1.width;
    struct virgl_box all = {0, 0, 0, width, 1, 1};
    int error = 0;

    object->buffer = gl_name(id);
    if (object->buffer)
        return iso_gl_pin_buffer(object->buffer, object->pin->memory, width) ? 0 : ENOTSUP;
    object->iov = (struct iovec){object->pin->memory, width};
    if (object->resource.v1.bind == BIND_CUSTOM)
        error = virgl_renderer_transfer_write_iov(id, 0, 0, 0, 0, &all, 0, &object->iov, 1);
    return error ? abs(error) : abs(virgl_renderer_resource_attach_iov((int)id, &object->iov, 1));
}

static int make_pinned(struct object *object, const struct iso_virgl_storage *storage, int fd)
{
    const uint32_t width = object->resource.v1.width;

    if (storage->offset % 4096 || storage->offset > storage->nbytes || width > storage->nbytes - storage->offset ||
        !iso_sealed_bytes(fd, storage->nbytes, storage->kind == ISO_VIRGL_DMABUF))
        return EINVAL;
    object->pin = iso_pin_new(fd, storage->offset, width);
    if (!object->pin)
        return errno;
    int error = make_own(&object->resource, object->resource.v1.flags & ~MAP_FLAGS);
    if (!error && (error = pin_data(object)))
        virgl_renderer_resource_unref(object->resource.resource_id);
    if (error) {
        iso_pin_release(object->pin);
        object->pin = NULL;
    }
    return error;
}

/* Something in a context can keep the object beyond its id: it must not find the memory any more. */
static void unpin_data(struct object *object)
{
    if (object->buffer)
        iso_gl_unpin_buffer(object->buffer, object->resource.v1.width);
    else
        virgl_renderer_resource_detach_iov((int)object->resource.resource_id, NULL, NULL);
    iso_pin_release(object->pin);
}

static int make_in_storage(struct object *object, struct iso_virgl_storage *storage, int fd)
{
    if (object->resource.v1.target == ISO_TARGET_BUFFER)
        return make_pinned(object, storage, fd);
    return make_of_image(&object->resource, storage, fd);
}

static int remember_unknown(struct object *object, const struct iso_virgl_storage *storage, int fd)
{
    object->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    object->storage = *storage;
    return object->fd < 0 ? errno : 0;
}

/* The table. */

static bool is_known(const struct object *object)
{
    return object->resource.v1.width;
}

static bool has(const struct object *object, uint32_t ctx_id)
{
    for (const struct attachment *at = object ? object->attachments : NULL; at; at = at->next)
        if (at->ctx_id == ctx_id)
            return true;
    return false;
}

static bool can_attach(uint32_t ctx_id, uint32_t id)
{
    return iso_virgl_context_get(ctx_id) && id && id <= INT32_MAX && !has(iso_idmap_get(&objects, id), ctx_id);
}

static struct object *new_object(const struct iso_virgl_resource *resource)
{
    struct object *object = malloc(sizeof(*object));

    if (object)
        *object = (struct object){.resource = *resource, .fd = NO_FD};
    return object;
}

/* Of an object that virglrenderer knows, unless it is not known what it is. */
static void drop(struct object *object)
{
    iso_virgl_mirror_free(object->mirror);
    if (object->pin)
        unpin_data(object);
    if (is_known(object))
        virgl_renderer_resource_unref(object->resource.resource_id);
    if (object->fd >= 0)
        close(object->fd);
    free(object);
}

/* Put an object that was made into the table, for its first context to attach; with an error it is gone. */
static int keep(struct object *object, int error)
{
    if (error) {
        free(object); /* of which nothing was made */
        return error;
    }
    if (iso_idmap_put(&objects, object->resource.resource_id, object))
        return 0;
    drop(object);
    return ENOMEM;
}

static int attach(uint32_t ctx_id, uint32_t id)
{
    struct object *object = iso_idmap_get(&objects, id);
    struct attachment *attachment = malloc(sizeof(*attachment));

    if (!attachment) {
        if (!object->attachments)
            drop(iso_idmap_remove(&objects, id));
        return ENOMEM;
    }
    *attachment = (struct attachment){.ctx_id = ctx_id, .next = object->attachments};
    object->attachments = attachment;
    if (is_known(object))
        virgl_renderer_ctx_attach_resource((int)ctx_id, (int)id);
    return 0;
}

int iso_virgl_resource_attach(uint32_t ctx_id, const struct iso_virgl_resource *resource)
{
    const uint32_t id = resource->resource_id;

    if (!can_attach(ctx_id, id) || !resource->v1.width)
        return EINVAL;
    if (!iso_idmap_get(&objects, id)) {
        struct object *object = new_object(resource);
        int error = object ? keep(object, make_own(resource, resource->v1.flags)) : ENOMEM;
        if (error)
            return error;
    }
    return attach(ctx_id, id);
}

static int import(const struct iso_virgl_resource *resource, struct iso_virgl_storage *storage, int fd)
{
    struct object *object = new_object(resource);

    if (!object)
        return ENOMEM;
    return keep(object, resource->v1.width ? make_in_storage(object, storage, fd) : remember_unknown(object, storage, fd));
}

int iso_virgl_resource_import(uint32_t ctx_id, const struct iso_virgl_resource *resource,
                              const struct iso_virgl_storage *storage, int fd)
{
    struct iso_virgl_storage copy = *storage;

    if (!can_attach(ctx_id, resource->resource_id))
        return EINVAL;
    if (!iso_idmap_get(&objects, resource->resource_id)) {
        int error = import(resource, &copy, fd);
        if (error)
            return error;
    }
    return attach(ctx_id, resource->resource_id);
}

int iso_virgl_resource_detach(uint32_t ctx_id, uint32_t resource_id)
{
    struct object *object = iso_idmap_get(&objects, resource_id);

    if (!has(object, ctx_id))
        return ENOENT;
    struct attachment **at = &object->attachments;
    while ((*at)->ctx_id != ctx_id)
        at = &(*at)->next;
    struct attachment *found = *at;
    *at = found->next;
    free(found);
    if (is_known(object))
        virgl_renderer_ctx_detach_resource((int)ctx_id, (int)resource_id);
    if (!object->attachments)
        drop(iso_idmap_remove(&objects, resource_id));
    return 0;
}

/* Removing moves other entries, so every walk ends with the first removal. */
static bool detach_one(uint32_t ctx_id)
{
    for (uint32_t i = 0; i < objects.capacity; i++)
        if (objects.slots[i].id && iso_virgl_resource_detach(ctx_id, objects.slots[i].id) == 0)
            return true;
    return false;
}

void iso_virgl_resource_detach_all(uint32_t ctx_id)
{
    while (detach_one(ctx_id))
        ;
}

/* Mirrors. A buffer without a GL buffer has no contents of its own to copy. */

static int give_mirror(struct object *object, bool is_new, uint64_t nbytes, int fd)
{
    if (!is_known(object))
        return EINVAL;
    if (!gl_name(object->resource.resource_id))
        return ENOTSUP;
    iso_virgl_mirror_free(object->mirror);
    object->mirror = NULL;
    return iso_virgl_mirror_new(object->resource.resource_id, &object->resource.v1, !is_new, nbytes, fd, &object->mirror);
}

int iso_virgl_resource_mirror(uint32_t ctx_id, const struct iso_virgl_resource *resource, uint64_t nbytes, int fd)
{
    const uint32_t id = resource->resource_id;
    struct object *object = iso_idmap_get(&objects, id);
    const bool is_new = !has(object, ctx_id);
    int error = 0;

    if (is_new)
        error = iso_virgl_resource_attach(ctx_id, resource);
    if (error || (is_new && object && object->mirror))
        return error;
    error = give_mirror(iso_idmap_get(&objects, id), is_new && !object, nbytes, fd);
    if (error && is_new)
        iso_virgl_resource_detach(ctx_id, id);
    return error;
}

int iso_virgl_resource_copy_out(uint32_t resource_id)
{
    struct object *object = iso_idmap_get(&objects, resource_id);

    return object && object->mirror ? iso_virgl_mirror_copy_out(object->mirror) : ENOENT;
}

int iso_virgl_resource_copy_in(uint32_t resource_id)
{
    struct object *object = iso_idmap_get(&objects, resource_id);

    return object && object->mirror ? iso_virgl_mirror_copy_in(object->mirror) : ENOENT;
}

/* What streams announce. */

static int make_blob(struct iso_virgl_resource *resource, const struct iso_texture *blob, struct iso_virgl_storage *storage, int fd)
{
    resource->v1 = *blob;
    if (iso_texture_bytes(blob) > storage->nbytes)
        return EINVAL;
    if (fd >= 0)
        return import(resource, storage, fd);
    struct object *object = new_object(resource);
    return object ? keep(object, make_own(resource, resource->v1.flags & ~MAP_FLAGS)) : ENOMEM;
}

int iso_virgl_resource_from_blob(uint32_t ctx_id, struct iso_virgl_resource *resource, uint64_t blob_id,
                                 struct iso_virgl_storage *storage, int fd)
{
    const uint32_t id = resource->resource_id;

    if (!can_attach(ctx_id, id) || iso_idmap_get(&objects, id))
        return EINVAL;
    struct iso_virgl_blobs *blobs = &iso_virgl_context_get(ctx_id)->blobs;
    const struct iso_texture *blob = iso_virgl_blobs_find(blobs, blob_id);
    if (!blob)
        return EINVAL;
    int error = make_blob(resource, blob, storage, fd);
    if (!error && !(error = attach(ctx_id, id)))
        iso_virgl_blobs_forget(blobs, blob_id);
    return error;
}

/* {resource, format, bind, width, height, usage, modifier (2 words), {stride, offset} for each plane}: a 2D texture. */
static struct iso_virgl_resource type_of(const uint32_t *command)
{
    return (struct iso_virgl_resource){
        .resource_id = command[1],
        .v1 = {.target = TARGET_2D,
               .format = command[2],
               .bind = command[3],
               .width = command[4],
               .height = command[5],
               .depth = 1,
               .array_size = 1},
    };
}

static bool is_set_type(const uint32_t *command)
{
    const uint32_t words = iso_virgl_length(command[0]), planes = words - ISO_VIRGL_SET_TYPE_WORDS;

    return words > ISO_VIRGL_SET_TYPE_WORDS && planes % ISO_VIRGL_SET_TYPE_PLANE_WORDS == 0 &&
           planes / ISO_VIRGL_SET_TYPE_PLANE_WORDS <= MAX_PLANES;
}

/* The first plane is all there is of a picture in one of the formats that can be imported. */
static int set_type(struct object *object, const uint32_t *command)
{
    const struct iso_virgl_resource resource = type_of(command);
    struct iso_virgl_storage storage = object->storage;

    storage.modifier = command[7] | (uint64_t)command[8] << 32;
    storage.stride = command[9];
    storage.offset += command[10];
    storage.fourcc = 0;
    if (!iso_texture_valid(&resource.v1) || !storage.stride)
        return EINVAL;
    int error = make_of_image(&resource, &storage, object->fd);
    if (error)
        return error;
    close(object->fd);
    object->fd = NO_FD;
    object->resource = resource;
    for (const struct attachment *at = object->attachments; at; at = at->next)
        virgl_renderer_ctx_attach_resource((int)at->ctx_id, (int)resource.resource_id);
    return 0;
}

int iso_virgl_resource_set_type(uint32_t ctx_id, const uint32_t *command)
{
    if (!is_set_type(command))
        return EINVAL;
    struct object *object = iso_idmap_get(&objects, command[1]);
    if (!has(object, ctx_id))
        return EINVAL;
    return is_known(object) ? 0 : set_type(object, command);
}

int iso_virgl_resource_texture(uint32_t ctx_id, uint32_t resource_id, uint32_t *texture, struct iso_virgl_resource *resource)
{
    const struct object *object = iso_idmap_get(&objects, resource_id);

    if (!has(object, ctx_id))
        return ENOENT;
    *texture = is_known(object) && object->resource.v1.target != ISO_TARGET_BUFFER ? gl_name(resource_id) : 0;
    *resource = object->resource;
    return *texture ? 0 : ENOTSUP;
}
