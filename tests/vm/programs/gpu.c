#include "gpu.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "virtgpu_abi.h"

/* virgl_protocol.h: a command's first word, and the commands. */
#define VIRGL_HEADER(command, words) ((uint32_t)(command) | (uint32_t)(words) << 16)
enum { CCMD_RESOURCE_COPY_REGION = 17, CCMD_PIPE_RESOURCE_CREATE = 48 };
/* virgl_hw.h and p_defines.h. */
enum { FORMAT_R8_UNORM = 64, BIND_VERTEX_BUFFER = 1 << 4, TARGET_BUFFER = 0, MAP_PERSISTENT = 1 << 1, MAP_COHERENT = 1 << 2 };

void fail(const char *what)
{
    int error = errno;

    fprintf(stderr, error ? "blobs: %s: %s\n" : "blobs: %s\n", what, strerror(error));
    exit(1);
}

void check(bool right, const char *what)
{
    if (!right) {
        errno = 0;
        fail(what);
    }
}

static void call(struct gpu gpu, unsigned long request, void *argument, const char *what)
{
    int result;

    do
        result = ioctl(gpu.fd, request, argument);
    while (result == -1 && (errno == EINTR || errno == EAGAIN));
    if (result == -1)
        fail(what);
}

struct gpu gpu_open(uint32_t capset_id, uint32_t num_rings)
{
    struct gpu gpu = {.fd = open("/dev/dri/renderD128", O_RDWR | O_CLOEXEC)};
    struct virtgpu_context_param params[] = {
        {.param = CONTEXT_PARAM_CAPSET_ID, .value = capset_id},
        {.param = CONTEXT_PARAM_NUM_RINGS, .value = num_rings},
    };
    struct virtgpu_context_init init = {.num_params = 2, .params = (uintptr_t)params};

    if (gpu.fd == -1)
        fail("/dev/dri/renderD128");
    call(gpu, IOCTL_CONTEXT_INIT, &init, "CONTEXT_INIT");
    return gpu;
}

int gpu_param(struct gpu gpu, uint64_t param)
{
    int value = 0;
    struct virtgpu_getparam get = {.param = param, .value = (uintptr_t)&value};

    call(gpu, IOCTL_GETPARAM, &get, "GETPARAM");
    return value;
}

struct object gpu_host_buffer(struct gpu gpu, uint64_t nbytes, uint32_t blob_id)
{
    const uint32_t words[] = {
        VIRGL_HEADER(CCMD_PIPE_RESOURCE_CREATE, 11),
        TARGET_BUFFER,
        FORMAT_R8_UNORM,
        BIND_VERTEX_BUFFER,
        (uint32_t)nbytes, /* width; height, depth and array size follow */
        1, 1, 1,
        0, 0, /* last_level, nr_samples */
        MAP_PERSISTENT | MAP_COHERENT,
        blob_id,
    };
    struct virtgpu_create_blob create = {
        .blob_mem = BLOB_MEM_HOST3D,
        .blob_flags = BLOB_FLAG_MAPPABLE | BLOB_FLAG_SHAREABLE,
        .size = nbytes,
        .cmd_size = sizeof words,
        .cmd = (uintptr_t)words,
        .blob_id = blob_id,
    };

    call(gpu, IOCTL_CREATE_BLOB, &create, "CREATE_BLOB of HOST3D");
    return (struct object){create.bo_handle, create.res_handle, nbytes};
}

struct object gpu_guest_blob(struct gpu gpu, uint64_t nbytes)
{
    struct virtgpu_create_blob create = {
        .blob_mem = BLOB_MEM_GUEST,
        .blob_flags = BLOB_FLAG_MAPPABLE | BLOB_FLAG_SHAREABLE,
        .size = nbytes,
    };

    call(gpu, IOCTL_CREATE_BLOB, &create, "CREATE_BLOB of GUEST");
    return (struct object){create.bo_handle, create.res_handle, nbytes};
}

struct object gpu_v1_buffer(struct gpu gpu, uint32_t nbytes)
{
    struct virtgpu_resource_create create = {
        .target = TARGET_BUFFER,
        .format = FORMAT_R8_UNORM,
        .bind = BIND_VERTEX_BUFFER,
        .width = nbytes,
        .height = 1,
        .depth = 1,
        .array_size = 1,
        .size = nbytes,
    };

    call(gpu, IOCTL_RESOURCE_CREATE, &create, "RESOURCE_CREATE");
    return (struct object){create.bo_handle, create.res_handle, nbytes};
}

void gpu_close_object(struct gpu gpu, struct object object)
{
    struct drm_gem_close close = {.handle = object.handle};

    call(gpu, IOCTL_GEM_CLOSE, &close, "GEM_CLOSE");
}

int gpu_export(struct gpu gpu, struct object object)
{
    struct drm_prime_handle prime = {.handle = object.handle, .flags = DRM_CLOEXEC | DRM_RDWR};

    call(gpu, IOCTL_PRIME_HANDLE_TO_FD, &prime, "PRIME_HANDLE_TO_FD");
    return prime.fd;
}

struct object gpu_import(struct gpu gpu, int fd, uint64_t nbytes)
{
    struct drm_prime_handle prime = {.fd = fd};
    struct virtgpu_resource_info info = {0};

    call(gpu, IOCTL_PRIME_FD_TO_HANDLE, &prime, "PRIME_FD_TO_HANDLE");
    info.bo_handle = prime.handle;
    call(gpu, IOCTL_RESOURCE_INFO, &info, "RESOURCE_INFO");
    return (struct object){prime.handle, info.res_handle, nbytes};
}

uint8_t *gpu_map(struct gpu gpu, struct object object)
{
    struct virtgpu_map map = {.handle = object.handle};
    uint8_t *memory;

    call(gpu, IOCTL_MAP, &map, "MAP");
    memory = mmap(NULL, object.nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, gpu.fd, (off_t)map.offset);
    if (memory == MAP_FAILED)
        fail("mmap of an object");
    return memory;
}

int gpu_submit(struct gpu gpu, const uint32_t *words, size_t count, uint32_t ring_idx, const struct object *objects,
               uint32_t num_objects)
{
    uint32_t handles[4];
    struct virtgpu_execbuffer submit = {
        .flags = EXECBUF_FENCE_FD_OUT | EXECBUF_RING_IDX,
        .size = (uint32_t)(count * sizeof *words),
        .command = (uintptr_t)words,
        .bo_handles = (uintptr_t)handles,
        .num_bo_handles = num_objects,
        .fence_fd = -1,
        .ring_idx = ring_idx,
    };

    check(num_objects <= sizeof handles / sizeof *handles, "too many objects");
    for (uint32_t i = 0; i < num_objects; i++)
        handles[i] = objects[i].handle;
    call(gpu, IOCTL_EXECBUFFER, &submit, "EXECBUFFER");
    return submit.fence_fd;
}

bool gpu_fence_wait(int sync_file, int milliseconds)
{
    struct pollfd wait = {.fd = sync_file, .events = POLLIN};

    return poll(&wait, 1, milliseconds) == 1;
}

void gpu_copy_buffer(struct gpu gpu, struct object to, struct object from)
{
    const uint32_t words[] = {
        VIRGL_HEADER(CCMD_RESOURCE_COPY_REGION, 13),
        to.resource_id, 0, 0, 0, 0, /* level, x, y, z */
        from.resource_id, 0, 0, 0, 0,
        (uint32_t)from.nbytes, 1, 1,
    };
    const struct object objects[] = {to, from};
    int fence = gpu_submit(gpu, words, sizeof words / sizeof *words, 0, objects, 2);

    check(gpu_fence_wait(fence, -1), "wait for a copy");
    close(fence);
}

static void transfer(struct gpu gpu, unsigned long request, struct object buffer, const char *what)
{
    struct virtgpu_transfer box = {.bo_handle = buffer.handle, .w = (uint32_t)buffer.nbytes, .h = 1, .d = 1};
    struct virtgpu_wait wait = {.handle = buffer.handle};

    call(gpu, request, &box, what);
    call(gpu, IOCTL_WAIT, &wait, "WAIT");
}

void gpu_transfer_from_host(struct gpu gpu, struct object buffer)
{
    transfer(gpu, IOCTL_TRANSFER_FROM_HOST, buffer, "TRANSFER_FROM_HOST");
}

void gpu_transfer_to_host(struct gpu gpu, struct object buffer)
{
    transfer(gpu, IOCTL_TRANSFER_TO_HOST, buffer, "TRANSFER_TO_HOST");
}
