#include "canvas.h"

#include "gl.h"

#include <EGL/egl.h>
#include <EGL/eglext.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void make_context(void)
{
    static const EGLint config_attributes[] = {EGL_SURFACE_TYPE, EGL_PBUFFER_BIT, EGL_RENDERABLE_TYPE,
                                               EGL_OPENGL_ES2_BIT, EGL_NONE};
    static const EGLint context_attributes[] = {EGL_CONTEXT_CLIENT_VERSION, 2, EGL_NONE};
    EGLDisplay display = eglGetPlatformDisplay(EGL_PLATFORM_SURFACELESS_MESA, EGL_DEFAULT_DISPLAY, NULL);
    EGLConfig config;
    EGLint count = 0;
    EGLContext context;

    if (display == EGL_NO_DISPLAY || !eglInitialize(display, NULL, NULL))
        die(1, "EGL has no surfaceless display (error 0x%04x)", eglGetError());
    if (!eglBindAPI(EGL_OPENGL_ES_API) || !eglChooseConfig(display, config_attributes, &config, 1, &count) || !count)
        die(1, "EGL has no configuration for GLES 2 (error 0x%04x)", eglGetError());
    context = eglCreateContext(display, config, EGL_NO_CONTEXT, context_attributes);
    if (context == EGL_NO_CONTEXT || !eglMakeCurrent(display, EGL_NO_SURFACE, EGL_NO_SURFACE, context))
        die(1, "EGL makes no GLES 2 context current (error 0x%04x)", eglGetError());
}

static void make_framebuffer(int width, int height)
{
    GLuint framebuffer, colour, depth;

    glGenTextures(1, &colour);
    glBindTexture(GL_TEXTURE_2D, colour);
    glTexImage2D(GL_TEXTURE_2D, 0, GL_RGBA, width, height, 0, GL_RGBA, GL_UNSIGNED_BYTE, NULL);
    glTexParameteri(GL_TEXTURE_2D, GL_TEXTURE_MIN_FILTER, GL_NEAREST);
    glTexParameteri(GL_TEXTURE_2D, GL_TEXTURE_WRAP_S, GL_CLAMP_TO_EDGE);
    glTexParameteri(GL_TEXTURE_2D, GL_TEXTURE_WRAP_T, GL_CLAMP_TO_EDGE);
    glBindTexture(GL_TEXTURE_2D, 0);
    glGenRenderbuffers(1, &depth);
    glBindRenderbuffer(GL_RENDERBUFFER, depth);
    glRenderbufferStorage(GL_RENDERBUFFER, GL_DEPTH_COMPONENT16, width, height);
    glGenFramebuffers(1, &framebuffer);
    glBindFramebuffer(GL_FRAMEBUFFER, framebuffer);
    glFramebufferTexture2D(GL_FRAMEBUFFER, GL_COLOR_ATTACHMENT0, GL_TEXTURE_2D, colour, 0);
    glFramebufferRenderbuffer(GL_FRAMEBUFFER, GL_DEPTH_ATTACHMENT, GL_RENDERBUFFER, depth);
    if (glCheckFramebufferStatus(GL_FRAMEBUFFER) != GL_FRAMEBUFFER_COMPLETE)
        die(1, "the framebuffer object of %dx%d is not complete", width, height);
    glViewport(0, 0, width, height);
}

struct canvas canvas_open(int width, int height)
{
    struct canvas canvas = {width, height, calloc((size_t)width * (size_t)height, 4)};

    if (!canvas.pixels)
        die(1, "no memory for %dx%d pixels", width, height);
    make_context();
    make_framebuffer(width, height);
    check_gl("when making the framebuffer");
    return canvas;
}

void canvas_finish_frame(struct canvas *canvas, unsigned number, bool present)
{
    /* Alpha stays 255 and green 128, so that no cleared or unwritten memory looks like a frame. */
    const uint8_t marker[4] = {(uint8_t)number, 128, (uint8_t)(number >> 8), 255};

    glEnable(GL_SCISSOR_TEST);
    glScissor(0, 0, 1, 1);
    glClearColor(marker[0] / 255.0f, marker[1] / 255.0f, marker[2] / 255.0f, 1);
    glClear(GL_COLOR_BUFFER_BIT);
    glDisable(GL_SCISSOR_TEST);
    glReadPixels(0, 0, present ? canvas->width : 1, present ? canvas->height : 1, GL_RGBA, GL_UNSIGNED_BYTE,
                 canvas->pixels);
    if (memcmp(canvas->pixels, marker, sizeof marker) != 0)
        die(1, "frame %u came back with %02x%02x%02x%02x where it should have %02x%02x%02x%02x", number,
            canvas->pixels[0], canvas->pixels[1], canvas->pixels[2], canvas->pixels[3], marker[0], marker[1],
            marker[2], marker[3]);
}

void canvas_dump(struct canvas *canvas, const char *path)
{
    FILE *file = fopen(path, "wb");

    if (!file)
        die(1, "%s cannot be written: %s", path, strerror(errno));
    glReadPixels(0, 0, canvas->width, canvas->height, GL_RGBA, GL_UNSIGNED_BYTE, canvas->pixels);
    fprintf(file, "P6\n%d %d\n255\n", canvas->width, canvas->height);
    for (int y = canvas->height - 1; y >= 0; y--)
        for (int x = 0; x < canvas->width; x++)
            fwrite(canvas->pixels + 4 * ((size_t)y * (size_t)canvas->width + (size_t)x), 3, 1, file);
    if (ferror(file) | fclose(file))
        die(1, "%s cannot be written", path);
}
