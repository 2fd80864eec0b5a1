/*
 * A session's resources: ids, and the memory each shares with the client.
 *
 * The memory is a memfd that can neither shrink nor grow, so that no access of ours ends in SIGBUS. The client maps it too
 * and may change it at any time. Small memory that was given back is kept, with its descriptor, for the next resource of its
 * size: Mesa makes a resource of eight bytes for every fence, one a frame, and gives back those of a second at once.
 */
#ifndef ISOREND_VTEST_RESOURCES_H
#define ISOREND_VTEST_RESOURCES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "idmap.h"

#define ISO_VTEST_MAX_RESOURCES (1u << 18)
#define ISO_VTEST_MAX_SHARED_BYTES (32ull << 30) /* address space; pages are there once somebody has touched them */
#define ISO_VTEST_KEPT_BYTES (64u << 10)         /* memory that is kept is at most this large each */
#define ISO_VTEST_MAX_DESCRIPTORS 448u /* of small memory, in use or kept: less than half of what a process may have */

struct iso_shared {
    int fd; /* -1: closed, the mapping alone is left */
    void *memory;
    uint64_t bytes; /* whole pages */
};

struct iso_vtest_resource {
    uint32_t id;
    struct iovec iov; /* base NULL: no memory of its own. The engine has its address */
    struct iso_shared shared;
};

struct iso_vtest_resources {
    struct iso_idmap map;
    uint32_t next_id;
    uint64_t shared_bytes;
    uint32_t descriptors;
    struct iso_shared kept[ISO_VTEST_MAX_DESCRIPTORS]; /* the one kept last is taken first: it is still in the cache */
    uint32_t kept_count;
};

struct iso_vtest_resource *iso_vtest_resource_get(const struct iso_vtest_resources *resources, uint32_t id);
/*
 * A resource without memory. id 0: the table chooses. NULL with errno: EEXIST, EINVAL (ids have 31 bits), EDQUOT, ENOMEM.
 */
struct iso_vtest_resource *iso_vtest_resource_new(struct iso_vtest_resources *resources, uint32_t id);
/*
 * Gives a resource `bytes` bytes of memory, zeros. Returns 0, or -1 with errno (EDQUOT: more than a session may have). The
 * descriptor is in resource->shared.fd until iso_vtest_resource_sent().
 */
int iso_vtest_resource_share(struct iso_vtest_resources *resources, struct iso_vtest_resource *resource, uint64_t bytes);
/* The client has its descriptor: close ours, unless it is worth keeping. */
void iso_vtest_resource_sent(struct iso_vtest_resources *resources, struct iso_vtest_resource *resource);
/* The engine no longer uses its iov. */
void iso_vtest_resource_free(struct iso_vtest_resources *resources, struct iso_vtest_resource *resource);
void iso_vtest_resources_release(struct iso_vtest_resources *resources);

#endif
