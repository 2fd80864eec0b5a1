/* OpenGL's buffers in memory of ours (GL_AMD_pinned_memory), in whatever context is current: one of virglrenderer's. */
#ifndef ISOREND_VIRGL_GL_BUFFER_H
#define ISOREND_VIRGL_GL_BUFFER_H

#include <stdbool.h>
#include <stdint.h>

/* Have a buffer's data lie in `memory`, as it is. False where the driver cannot; then the data is what it was or gone. */
bool iso_gl_pin_buffer(uint32_t buffer, void *memory, uint64_t bytes);
/*
 * Wait for all work and give the buffer memory of its own, without its data. Contexts in which it is bound may go on using
 * the memory that it was pinned to.
 */
void iso_gl_unpin_buffer(uint32_t buffer, uint64_t bytes);

/* Whether there was an error since this was last asked. */
bool iso_gl_take_error(void);

#endif
