/*
 * The window system that virglrenderer asks for, on an EGL display that Python has opened.
 *
 * These are the callbacks of struct virgl_renderer_callbacks; they also run on virglrenderer's own sync thread, so they are C
 * and keep no state but what iso_virgl_egl_setup() was told before virgl_renderer_init().
 */
#ifndef ISOREND_VIRGL_EGL_H
#define ISOREND_VIRGL_EGL_H

#include <stdbool.h>

#include "virgl_api.h"

/* display: an initialised EGLDisplay; config: an EGLConfig for surfaceless contexts; gles: OpenGL ES instead of OpenGL. */
void iso_virgl_egl_setup(void *display, void *config, bool gles);

virgl_renderer_gl_context iso_virgl_egl_create_context(void *cookie, int scanout_idx,
                                                       struct virgl_renderer_gl_ctx_param *param);
void iso_virgl_egl_destroy_context(void *cookie, virgl_renderer_gl_context context);
int iso_virgl_egl_make_current(void *cookie, int scanout_idx, virgl_renderer_gl_context context);
void *iso_virgl_egl_display(void *cookie);

#endif
