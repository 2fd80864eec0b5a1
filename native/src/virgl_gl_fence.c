#include "virgl_gl_fence.h"

#include <EGL/egl.h>
#include <stddef.h>

/* Khronos' registry of GL numbers. */
enum {
    GL_SYNC_GPU_COMMANDS_COMPLETE = 0x9117,
    GL_TIMEOUT_EXPIRED = 0x911B,
    GL_SYNC_FLUSH_COMMANDS_BIT = 1,
};

static struct {
    void *(*fence_sync)(unsigned condition, unsigned flags);
    unsigned (*client_wait_sync)(void *sync, unsigned flags, uint64_t timeout_ns);
    void (*delete_sync)(void *sync);
    void (*flush)(void);
} gl;

static bool find(const char *name, void (**function)(void))
{
    *function = eglGetProcAddress(name);
    return *function != NULL;
}

static bool found(void)
{
    return gl.flush || (find("glFenceSync", (void (**)(void))&gl.fence_sync) &&
                        find("glClientWaitSync", (void (**)(void))&gl.client_wait_sync) &&
                        find("glDeleteSync", (void (**)(void))&gl.delete_sync) && find("glFlush", &gl.flush));
}

void *iso_gl_fence(void)
{
    return found() ? gl.fence_sync(GL_SYNC_GPU_COMMANDS_COMPLETE, 0) : NULL;
}

bool iso_gl_fence_wait(void *fence, uint64_t timeout_ns)
{
    return gl.client_wait_sync(fence, GL_SYNC_FLUSH_COMMANDS_BIT, timeout_ns) != GL_TIMEOUT_EXPIRED;
}

void iso_gl_fence_drop(void *fence)
{
    gl.delete_sync(fence);
}

void iso_gl_flush(void)
{
    if (found())
        gl.flush();
}
