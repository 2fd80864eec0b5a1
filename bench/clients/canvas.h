/* Where the client draws: an EGL context without a surface and a framebuffer object, no window system anywhere. */
#ifndef BENCH_CANVAS_H
#define BENCH_CANVAS_H

#include <stdbool.h>
#include <stdint.h>

struct canvas {
    int width, height;
    uint8_t *pixels; /* width * height RGBA, the bottom row first: what was read back last */
};

/* Makes a GLES 2 context of EGL_MESA_platform_surfaceless current and binds the framebuffer object (colour, depth). */
struct canvas canvas_open(int width, int height);

/*
 * Ends frame `number` and waits until it is there.
 *
 * The lower left pixel is cleared to a colour made of the number, and read back; it can only arrive after the server has
 * worked off the whole frame, since it is drawn last. glFinish would leave it to the server to say when it is done. With
 * `present` the whole picture is read back, which is what swapping buffers does where a window system has no GPU.
 * Ends the process if the pixel has another colour than it should.
 */
void canvas_finish_frame(struct canvas *canvas, unsigned number, bool present);

/* Reads the picture back and writes it as a PPM file. */
void canvas_dump(struct canvas *canvas, const char *path);

#endif
