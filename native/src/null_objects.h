/*
 * The objects of the null engine: resources that are nothing but bytes, so that what surrounds an engine has contents to
 * share and to compare.
 *
 * Theory of operation
 *
 * An object's contents are a row of bytes: what a mirror (mirror.h) has of it behind its header. That is how streams count
 * them, wherever they lie: in memory of the object's own, which exists from when somebody writes; in a file, once they were
 * exported; or in storage that was imported, where the rows of a picture may be farther apart than they are long. A
 * descriptor is kept of none of these, so there can be more objects than descriptors.
 *
 * All of it belongs to the consumer's thread. Who calls keeps count of the contexts that have an object: here there is one of
 * each id.
 */
#ifndef ISOREND_NULL_OBJECTS_H
#define ISOREND_NULL_OBJECTS_H

#include "ring.h"
#include "texture.h"

struct iso_null_objects;

/* How contents lie behind a descriptor: as native.storage.Layout says, as far as it matters here. */
struct iso_null_storage {
    uint64_t nbytes, offset;
    uint32_t stride; /* bytes from row to row of the first level; 0: packed */
};

struct iso_null_objects *iso_null_objects_new(void);
void iso_null_objects_free(struct iso_null_objects *objects);

/* ---- for control records: these return 0 or a positive errno; a descriptor stays the caller's ---- */

/* An object with contents of zeros, if there is none of this id yet. One that has no known size has no contents. */
int iso_null_object_make(struct iso_null_objects *objects, uint32_t id, const struct iso_texture *texture);
/*
 * One whose contents lie behind `fd`, if there is none of this id yet. Width 0 of the texture: all bytes there are, as a buffer.
 * EINVAL: contents cannot lie so; EPROTO: the file is smaller than it is said to be, or could shrink.
 */
int iso_null_object_import(struct iso_null_objects *objects, uint32_t id, const struct iso_texture *texture,
                           const struct iso_null_storage *storage, int fd, bool dmabuf);
/* The object has this mirror from now on. ENOENT; EINVAL: it cannot have one, or of another size; EPROTO as above. */
int iso_null_object_mirror(struct iso_null_objects *objects, uint32_t id, uint64_t nbytes, int fd);
/*
 * Contents move to a sealed memfd, *fd, which is the caller's. ENOENT; EINVAL: there are none; EBUSY: they are in a file
 * already.
 */
int iso_null_object_export(struct iso_null_objects *objects, uint32_t id, struct iso_null_storage *storage, int *fd);
void iso_null_object_drop(struct iso_null_objects *objects, uint32_t id);

/* ---- for other records: these return an iso_status ---- */

uint32_t iso_null_object_fill(struct iso_null_objects *objects, uint32_t id, uint64_t offset, uint64_t length, uint8_t byte);
/* ISO_STATUS_FAILED if one of the bytes is another; *found is where. */
uint32_t iso_null_object_check(struct iso_null_objects *objects, uint32_t id, uint64_t offset, uint64_t length, uint8_t byte,
                               uint64_t *found);
/* All contents, to an object that has as many. */
uint32_t iso_null_object_copy(struct iso_null_objects *objects, uint32_t from, uint32_t to);
uint32_t iso_null_object_transfer(struct iso_null_objects *objects, const struct iso_transfer *transfer, uint8_t *staging,
                                  bool write);
/* As the operations of engine.h. */
uint32_t iso_null_object_copy_out(struct iso_null_objects *objects, uint32_t id);
uint32_t iso_null_object_copy_in(struct iso_null_objects *objects, uint32_t id);

#endif
