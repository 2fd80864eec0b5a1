/* OpenGL's sync objects (OpenGL 3.2, OpenGL ES 3.0) in whatever context is current: virglrenderer's. */
#ifndef ISOREND_VIRGL_GL_FENCE_H
#define ISOREND_VIRGL_GL_FENCE_H

#include <stdbool.h>
#include <stdint.h>

/* Behind everything this context was told so far; NULL if there can be none. */
void *iso_gl_fence(void);
/* Whether it has been passed, after at most timeout_ns. Errors count as passed: there is nothing left to wait for. */
bool iso_gl_fence_wait(void *fence, uint64_t timeout_ns);
void iso_gl_fence_drop(void *fence);
void iso_gl_flush(void);

#endif
