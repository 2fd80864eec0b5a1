#include "virgl_egl.h"

#include <EGL/egl.h>
#include <EGL/eglext.h>
#include <stddef.h>

static struct {
    EGLDisplay display;
    EGLConfig config;
    bool gles;
} winsys;

void iso_virgl_egl_setup(void *display, void *config, bool gles)
{
    winsys.display = display;
    winsys.config = config;
    winsys.gles = gles;
}

virgl_renderer_gl_context iso_virgl_egl_create_context(void *cookie, int scanout_idx,
                                                       struct virgl_renderer_gl_ctx_param *param)
{
    const EGLint attributes[] = {
        EGL_CONTEXT_MAJOR_VERSION, param->major_ver, EGL_CONTEXT_MINOR_VERSION, param->minor_ver, EGL_NONE,
    };
    EGLContext share = param->shared ? eglGetCurrentContext() : EGL_NO_CONTEXT;

    (void)cookie;
    (void)scanout_idx;
    if (!eglBindAPI(winsys.gles ? EGL_OPENGL_ES_API : EGL_OPENGL_API))
        return NULL;
    return eglCreateContext(winsys.display, winsys.config, share, attributes);
}

void iso_virgl_egl_destroy_context(void *cookie, virgl_renderer_gl_context context)
{
    (void)cookie;
    eglDestroyContext(winsys.display, context);
}

int iso_virgl_egl_make_current(void *cookie, int scanout_idx, virgl_renderer_gl_context context)
{
    (void)cookie;
    (void)scanout_idx;
    return eglMakeCurrent(winsys.display, EGL_NO_SURFACE, EGL_NO_SURFACE, context) ? 0 : -1;
}

void *iso_virgl_egl_display(void *cookie)
{
    (void)cookie;
    return winsys.display;
}
