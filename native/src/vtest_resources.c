#include "vtest_resources.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096 };

struct iso_vtest_resource *iso_vtest_resource_get(const struct iso_vtest_resources *resources, uint32_t id)
{
    return iso_idmap_get(&resources->map, id);
}

/* Ids go round, so that one that was dropped does not come back soon. */
static uint32_t choose_id(struct iso_vtest_resources *resources)
{
    do {
        resources->next_id = resources->next_id >= INT32_MAX ? 1 : resources->next_id + 1;
    } while (iso_idmap_get(&resources->map, resources->next_id));
    return resources->next_id;
}

struct iso_vtest_resource *iso_vtest_resource_new(struct iso_vtest_resources *resources, uint32_t id)
{
    struct iso_vtest_resource *resource;

    if (resources->map.used >= ISO_VTEST_MAX_RESOURCES) {
        errno = EDQUOT;
        return NULL;
    }
    if (!id)
        id = choose_id(resources);
    if (id > INT32_MAX || iso_idmap_get(&resources->map, id)) {
        errno = id > INT32_MAX ? EINVAL : EEXIST;
        return NULL;
    }
    resource = calloc(1, sizeof(*resource));
    if (!resource)
        return NULL;
    resource->id = id;
    resource->shared.fd = -1;
    if (!iso_idmap_put(&resources->map, id, resource)) {
        free(resource);
        errno = ENOMEM;
        return NULL;
    }
    return resource;
}

static bool take_kept(struct iso_vtest_resources *resources, struct iso_shared *shared, uint64_t bytes)
{
    for (uint32_t i = resources->kept_count; i-- > 0;)
        if (resources->kept[i].bytes == bytes) {
            *shared = resources->kept[i];
            resources->kept[i] = resources->kept[--resources->kept_count];
            memset(shared->memory, 0, bytes);
            return true;
        }
    return false;
}

static int make_shared(struct iso_shared *shared, uint64_t bytes)
{
    void *memory = MAP_FAILED;
    int fd = memfd_create("isorend-vtest", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return -1;
    if (!ftruncate(fd, (off_t)bytes) && !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    *shared = (struct iso_shared){.fd = fd, .memory = memory, .bytes = bytes};
    return 0;
}

int iso_vtest_resource_share(struct iso_vtest_resources *resources, struct iso_vtest_resource *resource, uint64_t bytes)
{
    uint64_t whole = (bytes + PAGE - 1) / PAGE * PAGE;

    if (!bytes || bytes > ISO_VTEST_MAX_SHARED_BYTES || whole > ISO_VTEST_MAX_SHARED_BYTES - resources->shared_bytes) {
        errno = bytes ? EDQUOT : EINVAL;
        return -1;
    }
    if (!take_kept(resources, &resource->shared, whole)) {
        if (make_shared(&resource->shared, whole))
            return -1;
        resources->descriptors++;
    }
    resources->shared_bytes += whole;
    resource->iov = (struct iovec){.iov_base = resource->shared.memory, .iov_len = (size_t)bytes};
    return 0;
}

static void close_shared_fd(struct iso_vtest_resources *resources, struct iso_shared *shared)
{
    if (shared->fd < 0)
        return;
    close(shared->fd);
    shared->fd = -1;
    resources->descriptors--;
}

void iso_vtest_resource_sent(struct iso_vtest_resources *resources, struct iso_vtest_resource *resource)
{
    if (resource->shared.bytes > ISO_VTEST_KEPT_BYTES || resources->descriptors > ISO_VTEST_MAX_DESCRIPTORS)
        close_shared_fd(resources, &resource->shared);
}

static void unmap(struct iso_shared *shared)
{
    munmap(shared->memory, shared->bytes);
    if (shared->fd >= 0)
        close(shared->fd);
}

void iso_vtest_resource_free(struct iso_vtest_resources *resources, struct iso_vtest_resource *resource)
{
    struct iso_shared *shared = &resource->shared;

    iso_idmap_remove(&resources->map, resource->id);
    if (shared->memory) {
        resources->shared_bytes -= shared->bytes;
        if (shared->bytes > ISO_VTEST_KEPT_BYTES)
            close_shared_fd(resources, shared); /* it was never sent */
        if (shared->fd >= 0 && resources->kept_count < ISO_VTEST_MAX_DESCRIPTORS) {
            resources->kept[resources->kept_count++] = *shared;
        } else {
            close_shared_fd(resources, shared);
            unmap(shared);
        }
    }
    free(resource);
}

void iso_vtest_resources_release(struct iso_vtest_resources *resources)
{
    for (uint32_t i = 0; i < resources->map.capacity; i++) {
        struct iso_vtest_resource *resource = resources->map.slots[i].id ? resources->map.slots[i].value : NULL;
        if (resource && resource->shared.memory)
            unmap(&resource->shared);
        free(resource);
    }
    iso_idmap_release(&resources->map);
    for (uint32_t i = 0; i < resources->kept_count; i++)
        unmap(&resources->kept[i]);
    memset(resources, 0, sizeof(*resources));
}
