/*
 * The GL engine: libvirglrenderer (vrend), with the guest contexts of virgl_contexts.h.
 *
 * virglrenderer is a process-wide singleton, so is this. All functions belong to the consumer's thread; fences come back on
 * virglrenderer's sync thread. Functions that can fail return 0, or the positive errno virglrenderer gave.
 */
#ifndef ISOREND_VIRGL_ENGINE_H
#define ISOREND_VIRGL_ENGINE_H

#include "engine.h"
#include "virgl_contexts.h"
#include "virgl_objects.h"

/*
 * Who finds out that work is done. A ring's consumer has fences come back on virglrenderer's sync thread; a vtest session
 * waits in its own and needs no such thread (and engine.fence_done does nothing but during virgl_renderer_poll()).
 */
enum iso_virgl_use { ISO_VIRGL_FOR_RING, ISO_VIRGL_FOR_VTEST };

/*
 * Initialise virglrenderer on an EGL display and config. NULL with errno, and error_text filled, when it refuses or was
 * initialised before. A GL context of virglrenderer's is current afterwards; whoever makes another one current must restore
 * it. What virglrenderer says is kept back until iso_virgl_started(). max_shader_bytes: see virgl_limits.h.
 */
struct iso_engine *iso_virgl_engine_init(void *egl_display, void *egl_config, bool gles, uint32_t use,
                                         uint32_t max_shader_bytes, char *error_text, size_t error_size);
void iso_virgl_started(void);

/* The bytes of a capability set, virgl or virgl2, its newest version and its size; NULL if there is no such set. */
const void *iso_virgl_capset(uint32_t id, uint32_t *version, uint32_t *size);

/* Whether streams asked for results of queries since the last fence of virglrenderer's: it writes them when one retires. */
bool iso_virgl_queries_wait(void);
/* Leave a fault for what virglrenderer logged as a context error, or for `error` (positive or negative errno, 0: none). */
void iso_virgl_report(const char *what, int error);

/* Version this was compiled against: major * 10000 + minor * 100 + micro. */
uint32_t iso_virgl_version(void);

#endif
