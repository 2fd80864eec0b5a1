/* `heavy` and `light`: the work of a frame is one fragment shader that iterates --load times at every pixel. */
#include "gl.h"
#include "scene.h"

static const char VERTEX[] = "attribute vec2 corner;\n"
                             "varying vec2 place;\n"
                             "void main() { place = corner * 1.3; gl_Position = vec4(corner, 0.0, 1.0); }\n";

/* A Julia set without an early exit, so that each pixel costs the same; its start moves with the frame. */
static const char FRAGMENT[] =
    "precision highp float;\n"
    "varying vec2 place;\n"
    "uniform float turn;\n"
    "uniform int load;\n"
    "void main() {\n"
    "    vec2 z = place;\n"
    "    vec2 c = vec2(-0.79 + 0.02 * cos(turn), 0.156 + 0.02 * sin(turn));\n"
    "    float inside = 0.0;\n"
    "    for (int i = 0; i < load; i++) {\n"
    "        z = clamp(vec2(z.x * z.x - z.y * z.y, 2.0 * z.x * z.y) + c, -4.0, 4.0);\n"
    "        inside += step(dot(z, z), 4.0);\n"
    "    }\n"
    "    float depth = inside / float(load);\n"
    "    gl_FragColor = vec4(depth, depth * depth, 0.3 + 0.7 * sqrt(depth), 1.0);\n"
    "}\n";

static GLint turn;

static void fill_open(int width, int height, int load)
{
    static const char *const names[] = {"corner"};
    GLuint program = make_program(VERTEX, FRAGMENT, names, 1);

    (void)width;
    (void)height;
    turn = glGetUniformLocation(program, "turn");
    glUniform1i(glGetUniformLocation(program, "load"), load);
    make_full_quad();
}

static void fill_draw(unsigned number)
{
    glUniform1f(turn, (float)(number % 628) * 0.01f);
    glDrawArrays(GL_TRIANGLE_STRIP, 0, 4);
}

const struct scene heavy_scene = {
    .name = "heavy", .load_unit = "shader iterations a pixel", .default_load = 1800, .max_load = 1000000,
    .width = 512, .height = 512, .open = fill_open, .draw = fill_draw,
};

const struct scene light_scene = {
    .name = "light", .load_unit = "shader iterations a pixel", .default_load = 8, .max_load = 1000000,
    .width = 128, .height = 128, .present = true, .open = fill_open, .draw = fill_draw,
};
