/*
 * What a vtest session asks of an engine, which offers it as iso_engine_ops.vtest. All on the session's thread.
 *
 * Functions that can fail return 0 or a positive errno. There is one context. An iov that is handed over with a resource is
 * used until the resource is dropped.
 */
#ifndef ISOREND_VTEST_OPS_H
#define ISOREND_VTEST_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct iso_engine;

/* The arguments of RESOURCE_CREATE without the id. */
struct iso_vtest_texture {
    uint32_t target, format, bind;
    uint32_t width, height, depth, array_size;
    uint32_t last_level, nr_samples;
};

struct iso_vtest_box {
    uint32_t x, y, z;
    uint32_t w, h, d;
};

struct iso_vtest_transfer {
    uint32_t resource_id, level;
    uint32_t stride, layer_stride; /* 0: those of the whole level */
    uint64_t offset;               /* in the resource's own iov; 0 with an iov of the transfer's */
    struct iso_vtest_box box;
    bool write; /* to the resource */
};

struct iso_vtest_blob {
    uint32_t memory, flags;
    uint64_t size, blob_id;
};

struct iso_vtest_ops {
    /* Bytes of a capability set and its newest version; NULL if there is no such set. */
    const void *(*capset)(struct iso_engine *engine, uint32_t id, uint32_t *version, uint32_t *size);
    int (*context_create)(struct iso_engine *engine, uint32_t capset_id, const char *name);
    int (*resource_create)(struct iso_engine *engine, uint32_t id, const struct iso_vtest_texture *texture);
    int (*resource_back)(struct iso_engine *engine, uint32_t id, struct iovec *iov);
    /* iov NULL: memory of the engine's, of which *fd is a mappable descriptor, the caller's. */
    int (*blob_create)(struct iso_engine *engine, uint32_t id, const struct iso_vtest_blob *blob, struct iovec *iov, int *fd);
    void (*resource_drop)(struct iso_engine *engine, uint32_t id);
    /* iov NULL: through the resource's own. */
    int (*transfer)(struct iso_engine *engine, const struct iso_vtest_transfer *transfer, struct iovec *iov);
    /* Execute a stream of `words` words; what went wrong is also an iso_engine_fault(). */
    int (*submit)(struct iso_engine *engine, const void *stream, uint32_t words);
    /* Have work begin that was only queued so far. */
    void (*flush)(struct iso_engine *engine);
    /*
     * A fence behind everything submitted so far, NULL if none can be made; wait: whether it has been passed, after at most
     * timeout_ms; what was passed has left its results where the client looks for them.
     */
    void *(*fence)(struct iso_engine *engine);
    bool (*fence_wait)(struct iso_engine *engine, void *fence, uint32_t timeout_ms);
    void (*fence_drop)(struct iso_engine *engine, void *fence);
};

#endif
