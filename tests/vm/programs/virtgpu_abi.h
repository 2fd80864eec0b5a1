/*
 * The ioctls of Linux's virtio-gpu driver and of DRM that the programs here call (uapi/drm/virtgpu_drm.h and uapi/drm/drm.h of
 * Linux 6.12). Debian packages them with libdrm, and Debian 12 from before there were blobs and rings.
 */
#ifndef VIRTGPU_ABI_H
#define VIRTGPU_ABI_H

#include <stdint.h>
#include <sys/ioctl.h>

#define DRM_IOC(nr, type) _IOWR('d', nr, type)
#define DRM_COMMAND(nr, type) DRM_IOC(0x40 + (nr), type)

struct drm_gem_close {
    uint32_t handle, pad;
};

struct drm_prime_handle {
    uint32_t handle, flags;
    int32_t fd;
};

struct virtgpu_map {
    uint64_t offset; /* for mmap */
    uint32_t handle, pad;
};

struct virtgpu_execbuffer {
    uint32_t flags, size;
    uint64_t command, bo_handles;
    uint32_t num_bo_handles;
    int32_t fence_fd;
    uint32_t ring_idx;
    uint32_t syncobj_stride, num_in_syncobjs, num_out_syncobjs;
    uint64_t in_syncobjs, out_syncobjs;
};

struct virtgpu_getparam {
    uint64_t param, value; /* value: the address of an int */
};

struct virtgpu_resource_create {
    uint32_t target, format, bind, width, height, depth, array_size, last_level, nr_samples, flags;
    uint32_t bo_handle, res_handle, size, stride;
};

struct virtgpu_resource_info {
    uint32_t bo_handle, res_handle, size, blob_mem;
};

struct virtgpu_transfer {
    uint32_t bo_handle;
    uint32_t x, y, z, w, h, d;
    uint32_t level, offset, stride, layer_stride;
};

struct virtgpu_wait {
    uint32_t handle, flags;
};

struct virtgpu_create_blob {
    uint32_t blob_mem, blob_flags, bo_handle, res_handle;
    uint64_t size;
    uint32_t pad, cmd_size;
    uint64_t cmd, blob_id;
};

struct virtgpu_context_param {
    uint64_t param, value;
};

struct virtgpu_context_init {
    uint32_t num_params, pad;
    uint64_t params;
};

enum {
    EXECBUF_FENCE_FD_OUT = 2,
    EXECBUF_RING_IDX = 4,

    PARAM_RESOURCE_BLOB = 3,
    PARAM_HOST_VISIBLE = 4,
    PARAM_CONTEXT_INIT = 6,

    CONTEXT_PARAM_CAPSET_ID = 1,
    CONTEXT_PARAM_NUM_RINGS = 2,

    BLOB_MEM_GUEST = 1,
    BLOB_MEM_HOST3D = 2,
    BLOB_FLAG_MAPPABLE = 1,
    BLOB_FLAG_SHAREABLE = 2,
};

#define DRM_CLOEXEC 02000000u
#define DRM_RDWR 2u

#define IOCTL_GEM_CLOSE _IOW('d', 0x09, struct drm_gem_close)
#define IOCTL_PRIME_HANDLE_TO_FD DRM_IOC(0x2d, struct drm_prime_handle)
#define IOCTL_PRIME_FD_TO_HANDLE DRM_IOC(0x2e, struct drm_prime_handle)
#define IOCTL_MAP DRM_COMMAND(0x01, struct virtgpu_map)
#define IOCTL_EXECBUFFER DRM_COMMAND(0x02, struct virtgpu_execbuffer)
#define IOCTL_GETPARAM DRM_COMMAND(0x03, struct virtgpu_getparam)
#define IOCTL_RESOURCE_CREATE DRM_COMMAND(0x04, struct virtgpu_resource_create)
#define IOCTL_RESOURCE_INFO DRM_COMMAND(0x05, struct virtgpu_resource_info)
#define IOCTL_TRANSFER_FROM_HOST DRM_COMMAND(0x06, struct virtgpu_transfer)
#define IOCTL_TRANSFER_TO_HOST DRM_COMMAND(0x07, struct virtgpu_transfer)
#define IOCTL_WAIT DRM_COMMAND(0x08, struct virtgpu_wait)
#define IOCTL_CREATE_BLOB DRM_COMMAND(0x0a, struct virtgpu_create_blob)
#define IOCTL_CONTEXT_INIT DRM_COMMAND(0x0b, struct virtgpu_context_init)

#endif
