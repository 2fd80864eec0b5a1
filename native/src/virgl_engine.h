/*
 * The GL engine: libvirglrenderer (vrend), with one guest context in this process.
 *
 * virglrenderer is a process-wide singleton, so is this. All functions belong to the consumer's thread; fences come back on
 * virglrenderer's sync thread. Functions that can fail return 0, or the positive errno virglrenderer gave.
 */
#ifndef ISOREND_VIRGL_ENGINE_H
#define ISOREND_VIRGL_ENGINE_H

#include "engine.h"

#define ISO_VIRGL_NAME_MAX 64

/* VIRTIO_GPU_CMD_RESOURCE_CREATE_3D, virtio 1.3 section 5.7.6.8. */
struct iso_virgl_resource {
    uint32_t resource_id;
    uint32_t target, format, bind;
    uint32_t width, height, depth, array_size;
    uint32_t last_level, nr_samples, flags;
};

/*
 * Who finds out that work is done. A ring's consumer has fences come back on virglrenderer's sync thread; a vtest session
 * waits in its own and needs no such thread (and engine.fence_done does nothing but during virgl_renderer_poll()).
 */
enum iso_virgl_use { ISO_VIRGL_FOR_RING, ISO_VIRGL_FOR_VTEST };

/*
 * Initialise virglrenderer on an EGL display and config. NULL with errno, and error_text filled, when it refuses or was
 * initialised before. A GL context of virglrenderer's is current afterwards; whoever makes another one current must restore
 * it. What virglrenderer says is kept back until iso_virgl_started().
 */
struct iso_engine *iso_virgl_engine_init(void *egl_display, void *egl_config, bool gles, uint32_t use, char *error_text,
                                         size_t error_size);
void iso_virgl_started(void);

/* The bytes of a capability set, virgl or virgl2, its newest version and its size; NULL if there is no such set. */
const void *iso_virgl_capset(uint32_t id, uint32_t *version, uint32_t *size);

/* The one guest context. capset_id 0 is a context of a guest without CONTEXT_INIT. */
int iso_virgl_context_create(uint32_t ctx_id, uint32_t capset_id, const char *name);
void iso_virgl_context_destroy(void);
uint32_t iso_virgl_context_id(void); /* 0: there is none */
/* Leave a fault for what virglrenderer logged as a context error, or for `error` (positive or negative errno, 0: none). */
void iso_virgl_report(const char *what, int error);

/* Make a resource and attach it to the context (EINVAL also where the id is taken); and the way back. */
int iso_virgl_resource_attach(const struct iso_virgl_resource *resource);
int iso_virgl_resource_detach(uint32_t resource_id);

/* Version this was compiled against: major * 10000 + minor * 100 + micro. */
uint32_t iso_virgl_version(void);

#endif
