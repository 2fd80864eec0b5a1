#include "null_objects.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "idmap.h"
#include "mirror.h"
#include "sealed_memory.h"

enum { PAGE = 4096, FORMAT_R8_UNORM = 64 };

struct object {
    struct iso_texture texture;
    uint64_t bytes;      /* of contents; 0: it has none */
    uint64_t row, pitch; /* bytes of a row, and from one to the next; pitch 0: all of it is packed */
    uint8_t *memory;     /* the first of its bytes; NULL: all are zero */
    void *mapping;       /* what memory is a part of; NULL: it is the object's own */
    uint64_t mapped;
    bool written; /* since it was last copied to or from its mirror */
    struct iso_mirror_header *mirror;
    uint64_t mirror_bytes;
    uint64_t seen; /* version of the mirror that contents are at least as new as */
};

struct iso_null_objects {
    struct iso_idmap map;
};

/* Contents. */

static uint64_t contents_bytes(const struct iso_texture *texture)
{
    struct iso_mirror_level last;

    if (!iso_mirror_bytes(texture) || !iso_mirror_level(texture, texture->last_level, &last))
        return 0;
    return last.offset - ISO_MIRROR_HEADER_BYTES + last.layer_stride * last.depth;
}

static bool has(const struct object *object, uint64_t offset, uint64_t length)
{
    return object->bytes && offset <= object->bytes && length <= object->bytes - offset;
}

static bool have_memory(struct object *object)
{
    if (!object->memory)
        object->memory = calloc(1, object->bytes);
    return object->memory;
}

/* Where contents are from `at` on. *length: how many of them are wanted, then how many lie there in a row. */
static uint8_t *stretch(const struct object *object, uint64_t at, uint64_t *length)
{
    if (!object->pitch)
        return object->memory + at;
    uint64_t column = at % object->row;
    if (*length > object->row - column)
        *length = object->row - column;
    return object->memory + at / object->row * object->pitch + column;
}

static void get(const struct object *object, uint64_t at, uint8_t *to, uint64_t length)
{
    if (!object->memory) {
        memset(to, 0, length);
        return;
    }
    while (length) {
        uint64_t count = length;
        const uint8_t *from = stretch(object, at, &count);
        memcpy(to, from, count);
        at += count;
        to += count;
        length -= count;
    }
}

static void put(struct object *object, uint64_t at, const uint8_t *from, uint64_t length)
{
    while (length) {
        uint64_t count = length;
        uint8_t *to = stretch(object, at, &count);
        memcpy(to, from, count);
        at += count;
        from += count;
        length -= count;
    }
    object->written = true;
}

/* The life of an object. */

static void let_go(struct object *object)
{
    if (object->mapping)
        munmap(object->mapping, object->mapped);
    else
        free(object->memory);
    if (object->mirror)
        munmap(object->mirror, object->mirror_bytes);
    free(object);
}

static int add(struct iso_null_objects *objects, uint32_t id, const struct object *made)
{
    struct object *object = malloc(sizeof(*object));

    if (!object)
        return ENOMEM;
    *object = *made;
    if (iso_idmap_put(&objects->map, id, object))
        return 0;
    free(object);
    return ENOMEM;
}

int iso_null_object_make(struct iso_null_objects *objects, uint32_t id, const struct iso_texture *texture)
{
    const struct object object = {.texture = *texture, .bytes = contents_bytes(texture)};

    return iso_idmap_get(&objects->map, id) ? 0 : add(objects, id, &object);
}

/* Rows that are farther apart than they are long: of a picture only, which is one level of one layer. */
static bool lay_out(struct object *object, uint32_t stride)
{
    struct iso_mirror_level level;

    if (!object->bytes || !iso_mirror_level(&object->texture, 0, &level))
        return false;
    object->row = level.stride;
    if (!stride || stride == level.stride)
        return true;
    object->pitch = stride;
    return object->texture.target != ISO_TARGET_BUFFER && object->bytes == level.layer_stride && stride > level.stride;
}

static bool fits(const struct object *object, const struct iso_null_storage *storage)
{
    uint64_t rows = object->bytes / object->row;
    uint64_t needed = object->pitch ? (rows - 1) * object->pitch + object->row : object->bytes;

    return storage->offset <= storage->nbytes && needed <= storage->nbytes - storage->offset;
}

static struct iso_texture as_buffer(const struct iso_null_storage *storage)
{
    uint64_t bytes = storage->offset < storage->nbytes ? storage->nbytes - storage->offset : 0;

    return (struct iso_texture){.target = ISO_TARGET_BUFFER, .format = FORMAT_R8_UNORM, .height = 1, .depth = 1, .array_size = 1,
                                .width = bytes < UINT32_MAX ? (uint32_t)bytes : UINT32_MAX};
}

int iso_null_object_import(struct iso_null_objects *objects, uint32_t id, const struct iso_texture *texture,
                           const struct iso_null_storage *storage, int fd, bool dmabuf)
{
    struct object object = {.texture = texture->width ? *texture : as_buffer(storage)};

    if (iso_idmap_get(&objects->map, id))
        return 0;
    object.bytes = contents_bytes(&object.texture);
    if (!lay_out(&object, storage->stride) || !fits(&object, storage))
        return EINVAL;
    object.mapping = iso_map_sealed(fd, storage->nbytes, dmabuf, &object.mapped);
    if (!object.mapping)
        return errno;
    object.memory = (uint8_t *)object.mapping + storage->offset;
    int error = add(objects, id, &object);
    if (error)
        munmap(object.mapping, object.mapped);
    return error;
}

int iso_null_object_mirror(struct iso_null_objects *objects, uint32_t id, uint64_t nbytes, int fd)
{
    struct object *object = iso_idmap_get(&objects->map, id);
    uint64_t bytes;

    if (!object)
        return ENOENT;
    if (!object->bytes || nbytes < iso_mirror_bytes(&object->texture))
        return EINVAL;
    struct iso_mirror_header *mirror = iso_map_sealed(fd, nbytes, false, &bytes);
    if (!mirror)
        return errno;
    if (object->mirror)
        munmap(object->mirror, object->mirror_bytes);
    object->mirror = mirror;
    object->mirror_bytes = bytes;
    object->seen = 0;
    return 0;
}

/* A sealed memfd, mapped. -1 with errno. */
static int make_file(uint64_t bytes, void **mapping)
{
    int fd = memfd_create("isorend-null", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return -1;
    if (ftruncate(fd, (off_t)bytes) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0) {
        *mapping = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (*mapping != MAP_FAILED)
            return fd;
    }
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

int iso_null_object_export(struct iso_null_objects *objects, uint32_t id, struct iso_null_storage *storage, int *fd)
{
    struct object *object = iso_idmap_get(&objects->map, id);
    struct iso_mirror_level level;
    void *mapping;

    if (!object)
        return ENOENT;
    if (!object->bytes || !iso_mirror_level(&object->texture, 0, &level))
        return EINVAL;
    if (object->mapping)
        return EBUSY;
    const uint64_t bytes = (object->bytes + PAGE - 1) & ~(uint64_t)(PAGE - 1);
    *fd = make_file(bytes, &mapping);
    if (*fd < 0)
        return errno;
    if (object->memory)
        get(object, 0, mapping, object->bytes);
    free(object->memory);
    object->memory = object->mapping = mapping;
    object->mapped = bytes;
    *storage = (struct iso_null_storage){
        .nbytes = bytes, .stride = object->texture.target == ISO_TARGET_BUFFER ? 0 : (uint32_t)level.stride};
    return 0;
}

void iso_null_object_drop(struct iso_null_objects *objects, uint32_t id)
{
    struct object *object = iso_idmap_remove(&objects->map, id);

    if (object)
        let_go(object);
}

struct iso_null_objects *iso_null_objects_new(void)
{
    return calloc(1, sizeof(struct iso_null_objects));
}

void iso_null_objects_free(struct iso_null_objects *objects)
{
    if (!objects)
        return;
    for (uint32_t i = 0; i < objects->map.capacity; i++)
        if (objects->map.slots[i].id)
            let_go(objects->map.slots[i].value);
    iso_idmap_release(&objects->map);
    free(objects);
}

/* What streams do. */

uint32_t iso_null_object_fill(struct iso_null_objects *objects, uint32_t id, uint64_t offset, uint64_t length, uint8_t byte)
{
    struct object *object = iso_idmap_get(&objects->map, id);

    if (!object)
        return ISO_STATUS_INVALID_RESOURCE;
    if (!has(object, offset, length))
        return ISO_STATUS_INVALID_PARAMETER;
    if (!have_memory(object))
        return ISO_STATUS_OUT_OF_MEMORY;
    for (uint64_t count; length; offset += count, length -= count) {
        count = length;
        uint8_t *bytes = stretch(object, offset, &count);
        memset(bytes, byte, count);
    }
    object->written = true;
    return ISO_STATUS_OK;
}

uint32_t iso_null_object_check(struct iso_null_objects *objects, uint32_t id, uint64_t offset, uint64_t length, uint8_t byte,
                               uint64_t *found)
{
    const struct object *object = iso_idmap_get(&objects->map, id);

    if (!object)
        return ISO_STATUS_INVALID_RESOURCE;
    if (!has(object, offset, length))
        return ISO_STATUS_INVALID_PARAMETER;
    *found = offset;
    if (!object->memory)
        return byte && length ? ISO_STATUS_FAILED : ISO_STATUS_OK;
    for (const uint64_t end = offset + length; *found < end;) {
        uint64_t count = end - *found;
        const uint8_t *bytes = stretch(object, *found, &count);
        for (uint64_t i = 0; i < count; i++, ++*found)
            if (bytes[i] != byte)
                return ISO_STATUS_FAILED;
    }
    return ISO_STATUS_OK;
}

uint32_t iso_null_object_copy(struct iso_null_objects *objects, uint32_t from, uint32_t to)
{
    const struct object *source = iso_idmap_get(&objects->map, from);
    struct object *target = iso_idmap_get(&objects->map, to);

    if (!source || !target)
        return ISO_STATUS_INVALID_RESOURCE;
    if (source == target || !source->bytes || source->bytes != target->bytes)
        return ISO_STATUS_INVALID_PARAMETER;
    if (!have_memory(target))
        return ISO_STATUS_OUT_OF_MEMORY;
    for (uint64_t at = 0, count; at < target->bytes; at += count) {
        count = target->bytes - at;
        uint8_t *bytes = stretch(target, at, &count);
        get(source, at, bytes, count);
    }
    target->written = true;
    return ISO_STATUS_OK;
}

/* Where the first byte of a box is in the contents. */
static uint64_t first_byte(const struct iso_texture *texture, const struct iso_transfer *transfer, const struct iso_mirror_level *level)
{
    static const struct iso_block byte = {.width = 1, .height = 1, .bytes = 1};
    const struct iso_block *block = texture->target == ISO_TARGET_BUFFER ? &byte : iso_format_block(texture->format);

    return level->offset - ISO_MIRROR_HEADER_BYTES + transfer->z * level->layer_stride +
           transfer->y / block->height * level->stride + (uint64_t)transfer->x / block->width * block->bytes;
}

static bool find_rows(const struct object *object, const struct iso_transfer *transfer, struct iso_rows *rows,
                      struct iso_mirror_level *level)
{
    const struct iso_box box = {transfer->x, transfer->y, transfer->z, transfer->w, transfer->h, transfer->d};

    if (!object->bytes || !iso_mirror_level(&object->texture, transfer->level, level) ||
        !iso_texture_rows(&object->texture, &box, transfer->level, transfer->stride, transfer->layer_stride, 0, rows))
        return false;
    return (rows->layers - 1) * rows->layer_stride + (rows->rows - 1) * rows->stride + rows->row_bytes <= transfer->len;
}

uint32_t iso_null_object_transfer(struct iso_null_objects *objects, const struct iso_transfer *transfer, uint8_t *staging,
                                  bool write)
{
    struct object *object = iso_idmap_get(&objects->map, transfer->resource_id);
    struct iso_mirror_level level;
    struct iso_rows rows;

    if (!object)
        return ISO_STATUS_INVALID_RESOURCE;
    if (!find_rows(object, transfer, &rows, &level))
        return ISO_STATUS_INVALID_PARAMETER;
    if (write && !have_memory(object))
        return ISO_STATUS_OUT_OF_MEMORY;
    const uint64_t first = first_byte(&object->texture, transfer, &level);
    for (uint32_t layer = 0; layer < rows.layers; layer++)
        for (uint32_t row = 0; row < rows.rows; row++) {
            uint64_t at = first + layer * level.layer_stride + row * level.stride;
            uint8_t *bytes = staging + layer * rows.layer_stride + row * rows.stride;
            if (write)
                put(object, at, bytes, rows.row_bytes);
            else
                get(object, at, bytes, rows.row_bytes);
        }
    return ISO_STATUS_OK;
}

/* The mirror. */

uint32_t iso_null_object_copy_out(struct iso_null_objects *objects, uint32_t id)
{
    struct object *object = iso_idmap_get(&objects->map, id);

    if (!object || !object->mirror)
        return ISO_STATUS_INVALID_RESOURCE;
    if (!object->written)
        return ISO_STATUS_OK;
    get(object, 0, (uint8_t *)object->mirror + ISO_MIRROR_HEADER_BYTES, object->bytes);
    atomic_fetch_add(&object->mirror->copied, object->bytes);
    object->seen = atomic_fetch_add(&object->mirror->version, 1) + 1;
    object->written = false;
    return ISO_STATUS_OK;
}

uint32_t iso_null_object_copy_in(struct iso_null_objects *objects, uint32_t id)
{
    struct object *object = iso_idmap_get(&objects->map, id);

    if (!object || !object->mirror)
        return ISO_STATUS_INVALID_RESOURCE;
    const uint64_t version = atomic_load(&object->mirror->version);
    if (!version || version == object->seen)
        return ISO_STATUS_OK;
    if (!have_memory(object))
        return ISO_STATUS_OUT_OF_MEMORY;
    put(object, 0, (uint8_t *)object->mirror + ISO_MIRROR_HEADER_BYTES, object->bytes);
    atomic_fetch_add(&object->mirror->copied, object->bytes);
    object->seen = version;
    object->written = false;
    return ISO_STATUS_OK;
}
