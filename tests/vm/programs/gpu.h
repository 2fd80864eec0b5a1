/*
 * A guest program's hold on the virtio-gpu: contexts, objects and what is done to them. Whatever the kernel refuses ends the
 * program with a line that says what it was.
 */
#ifndef GPU_H
#define GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Ends the program: "blobs: what: strerror(errno)", without the latter when errno is 0. */
_Noreturn void fail(const char *what);
void check(bool right, const char *what);

/* One open render node with its context. */
struct gpu {
    int fd;
};

/* A GEM object of one `struct gpu`. */
struct object {
    uint32_t handle, resource_id;
    uint64_t nbytes;
};

struct gpu gpu_open(uint32_t capset_id, uint32_t num_rings);
int gpu_param(struct gpu gpu, uint64_t param);

/* An object that a context makes by PIPE_RESOURCE_CREATE and that becomes a mappable HOST3D blob: a buffer. */
struct object gpu_host_buffer(struct gpu gpu, uint64_t nbytes, uint32_t blob_id);
/* BLOB_MEM_GUEST: the guest's own pages. */
struct object gpu_guest_blob(struct gpu gpu, uint64_t nbytes);
/* A v1 resource that is a buffer. */
struct object gpu_v1_buffer(struct gpu gpu, uint32_t nbytes);
void gpu_close_object(struct gpu gpu, struct object object);

/* A descriptor of an object, and the object of a descriptor; an object's contents are the same wherever it is. */
int gpu_export(struct gpu gpu, struct object object);
struct object gpu_import(struct gpu gpu, int fd, uint64_t nbytes);

uint8_t *gpu_map(struct gpu gpu, struct object object);

/* A command stream on a ring; the objects are those it speaks of. Returns a sync_file of its fence. */
int gpu_submit(struct gpu gpu, const uint32_t *words, size_t count, uint32_t ring_idx, const struct object *objects,
               uint32_t num_objects);
/* Whether the fence has been signalled within so many milliseconds (-1: any time). */
bool gpu_fence_wait(int sync_file, int milliseconds);

/* Copies a whole buffer into another one, by GL, and waits until that is done. */
void gpu_copy_buffer(struct gpu gpu, struct object to, struct object from);
void gpu_transfer_from_host(struct gpu gpu, struct object buffer);
void gpu_transfer_to_host(struct gpu gpu, struct object buffer);

#endif
