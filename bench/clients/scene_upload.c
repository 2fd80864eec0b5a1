/* `upload`: --load MiB of new data a frame, one half into a texture, the other half into a vertex buffer. */
#include "gl.h"
#include "scene.h"

#include <stdlib.h>

enum {
    TEXTURE_WIDTH = 1024,
    ROWS_PER_LOAD = 128,    /* half a MiB of RGBA */
    HALF_MIB = 512 * 1024,
    POINT_SIZE = 4,         /* bytes: two shorts */
    SHIFTS = 64,            /* frames that differ from each other */
    DRAWN_POINTS = 4096,
};

static const char PICTURE_VERTEX[] = "attribute vec2 corner;\n"
                                     "varying vec2 at;\n"
                                     "void main() { at = corner * 0.5 + 0.5; gl_Position = vec4(corner, 0.0, 1.0); }\n";
static const char PICTURE_FRAGMENT[] = "precision mediump float;\n"
                                       "varying vec2 at;\n"
                                       "uniform sampler2D picture;\n"
                                       "void main() { gl_FragColor = vec4(texture2D(picture, at).rgb, 1.0); }\n";
static const char POINT_VERTEX[] = "attribute vec2 point;\n"
                                   "void main() { gl_Position = vec4(point, 0.0, 1.0); gl_PointSize = 2.0; }\n";
static const char POINT_FRAGMENT[] = "precision mediump float;\n"
                                     "void main() { gl_FragColor = vec4(1.0, 0.9, 0.4, 1.0); }\n";

static struct {
    GLuint picture_program, point_program, corners, points;
    int rows;
    size_t half;
    uint8_t *data; /* half + SHIFTS texels of it; a frame starts somewhere in the first texels */
} state;

/* A cheap generator with a fixed seed: data that is the same in every run and has no pattern a copy could profit of. */
static void fill(uint8_t *data, size_t size)
{
    uint32_t x = 2463534242u;

    for (size_t i = 0; i < size; i++) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        data[i] = (uint8_t)(i >> 12 & 1 ? x >> 24 : x >> 26);
    }
}

static void upload_open(int width, int height, int load)
{
    static const char *const corner_names[] = {"corner"}, *const point_names[] = {"point"};

    (void)width;
    (void)height;
    state.rows = load * ROWS_PER_LOAD;
    state.half = (size_t)load * HALF_MIB;
    state.data = malloc(state.half + 4 * SHIFTS);
    if (!state.data)
        die(1, "no memory for %d MiB of data", load);
    fill(state.data, state.half + 4 * SHIFTS);
    state.picture_program = make_program(PICTURE_VERTEX, PICTURE_FRAGMENT, corner_names, 1);
    state.point_program = make_program(POINT_VERTEX, POINT_FRAGMENT, point_names, 1);
    state.points = make_buffer(GL_ARRAY_BUFFER, NULL, state.half);
    state.corners = make_full_quad();
    glTexImage2D(GL_TEXTURE_2D, 0, GL_RGBA, TEXTURE_WIDTH, state.rows, 0, GL_RGBA, GL_UNSIGNED_BYTE, NULL);
    glTexParameteri(GL_TEXTURE_2D, GL_TEXTURE_MIN_FILTER, GL_NEAREST);
    glTexParameteri(GL_TEXTURE_2D, GL_TEXTURE_WRAP_S, GL_CLAMP_TO_EDGE);
    glTexParameteri(GL_TEXTURE_2D, GL_TEXTURE_WRAP_T, GL_CLAMP_TO_EDGE);
}

static void upload_draw(unsigned number)
{
    const uint8_t *data = state.data + 4 * (number % SHIFTS);
    /* The points that are drawn lie all over the buffer's end, so the whole of it has to have arrived. */
    GLint first = (GLint)(state.half / POINT_SIZE) - DRAWN_POINTS;

    glTexSubImage2D(GL_TEXTURE_2D, 0, 0, 0, TEXTURE_WIDTH, state.rows, GL_RGBA, GL_UNSIGNED_BYTE, data);
    glUseProgram(state.picture_program);
    glBindBuffer(GL_ARRAY_BUFFER, state.corners);
    glVertexAttribPointer(0, 2, GL_FLOAT, GL_FALSE, 0, NULL);
    glDrawArrays(GL_TRIANGLE_STRIP, 0, 4);
    glUseProgram(state.point_program);
    glBindBuffer(GL_ARRAY_BUFFER, state.points);
    glBufferSubData(GL_ARRAY_BUFFER, 0, (GLsizeiptr)state.half, data);
    glVertexAttribPointer(0, 2, GL_SHORT, GL_TRUE, 0, NULL);
    glDrawArrays(GL_POINTS, first, DRAWN_POINTS);
}

const struct scene upload_scene = {
    .name = "upload", .load_unit = "MiB a frame", .default_load = 8, .max_load = 32,
    .width = 128, .height = 128, .open = upload_open, .draw = upload_draw,
};
