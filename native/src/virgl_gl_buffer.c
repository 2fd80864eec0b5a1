#include "virgl_gl_buffer.h"

#include <EGL/egl.h>
#include <stddef.h>

/* Khronos' registry of GL numbers. */
enum {
    GL_NO_ERROR = 0,
    GL_COPY_WRITE_BUFFER = 0x8F37,
    GL_EXTERNAL_VIRTUAL_MEMORY_BUFFER_AMD = 0x9160,
    GL_DYNAMIC_COPY = 0x88EA,
};

enum { MOST_ERRORS = 64 }; /* a context that is lost has one for ever */

static struct {
    void (*bind_buffer)(unsigned target, unsigned buffer);
    void (*buffer_data)(unsigned target, intptr_t size, const void *data, unsigned usage);
    void (*finish)(void);
    unsigned (*get_error)(void);
} gl;

static bool find(const char *name, void (**function)(void))
{
    *function = eglGetProcAddress(name);
    return *function != NULL;
}

static bool found(void)
{
    return gl.get_error || (find("glBindBuffer", (void (**)(void))&gl.bind_buffer) &&
                            find("glBufferData", (void (**)(void))&gl.buffer_data) && find("glFinish", &gl.finish) &&
                            find("glGetError", (void (**)(void))&gl.get_error));
}

bool iso_gl_take_error(void)
{
    int errors = 0;

    if (!found())
        return true;
    while (errors < MOST_ERRORS && gl.get_error() != GL_NO_ERROR)
        errors++;
    return errors;
}

static bool give_memory(unsigned target, uint32_t buffer, void *memory, uint64_t bytes)
{
    iso_gl_take_error();
    gl.bind_buffer(target, buffer);
    gl.buffer_data(target, (intptr_t)bytes, memory, GL_DYNAMIC_COPY);
    gl.bind_buffer(target, 0);
    return !iso_gl_take_error();
}

bool iso_gl_pin_buffer(uint32_t buffer, void *memory, uint64_t bytes)
{
    return found() && bytes <= INTPTR_MAX && give_memory(GL_EXTERNAL_VIRTUAL_MEMORY_BUFFER_AMD, buffer, memory, bytes);
}

void iso_gl_unpin_buffer(uint32_t buffer, uint64_t bytes)
{
    if (!found())
        return;
    gl.finish();
    give_memory(GL_COPY_WRITE_BUFFER, buffer, NULL, bytes);
}
