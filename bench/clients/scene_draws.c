/* `draws`: --load draws of one small square each, and before each another program, texture, blend mode or uniform. */
#include "gl.h"
#include "scene.h"

#include <math.h>

enum { PROGRAMS = 2, TEXTURES = 4, TEXTURE_SIZE = 8 };

static const char VERTEX[] = "attribute vec2 corner;\n"
                             "uniform vec4 place;\n" /* centre, half the size, turn */
                             "varying vec2 at;\n"
                             "void main() {\n"
                             "    vec2 turned = vec2(corner.x * cos(place.w) - corner.y * sin(place.w),\n"
                             "                       corner.x * sin(place.w) + corner.y * cos(place.w));\n"
                             "    at = corner * 0.5 + 0.5;\n"
                             "    gl_Position = vec4(place.xy + turned * place.z, 0.0, 1.0);\n"
                             "}\n";

static const char *const FRAGMENTS[PROGRAMS] = {
    "precision mediump float;\n"
    "varying vec2 at;\n"
    "uniform sampler2D picture;\n"
    "uniform vec4 tint;\n"
    "void main() { gl_FragColor = texture2D(picture, at) * tint; }\n",
    "precision mediump float;\n"
    "varying vec2 at;\n"
    "uniform sampler2D picture;\n"
    "uniform vec4 tint;\n"
    "void main() { gl_FragColor = vec4(1.0 - texture2D(picture, at.yx).rgb * tint.bgr, tint.a); }\n",
};

static struct {
    GLuint program[PROGRAMS], texture[TEXTURES];
    GLint place[PROGRAMS], tint[PROGRAMS];
    int draws, columns;
} state;

static void make_texture(int index)
{
    GLubyte texels[TEXTURE_SIZE * TEXTURE_SIZE][4];

    for (int i = 0; i < TEXTURE_SIZE * TEXTURE_SIZE; i++) {
        int x = i % TEXTURE_SIZE, y = i / TEXTURE_SIZE;

        texels[i][0] = (GLubyte)(255 - 28 * x * (index & 1));
        texels[i][1] = (GLubyte)(255 - 28 * y * (index >> 1));
        texels[i][2] = (GLubyte)((x + y + index) % 2 ? 255 : 90);
        texels[i][3] = 255;
    }
    glGenTextures(1, &state.texture[index]);
    glBindTexture(GL_TEXTURE_2D, state.texture[index]);
    glTexImage2D(GL_TEXTURE_2D, 0, GL_RGBA, TEXTURE_SIZE, TEXTURE_SIZE, 0, GL_RGBA, GL_UNSIGNED_BYTE, texels);
    glTexParameteri(GL_TEXTURE_2D, GL_TEXTURE_MIN_FILTER, GL_NEAREST);
    glTexParameteri(GL_TEXTURE_2D, GL_TEXTURE_MAG_FILTER, GL_NEAREST);
}

static void draws_open(int width, int height, int load)
{
    static const char *const names[] = {"corner"};

    (void)width;
    (void)height;
    state.draws = load;
    state.columns = (int)ceil(sqrt((double)load));
    for (int i = 0; i < PROGRAMS; i++) {
        state.program[i] = make_program(VERTEX, FRAGMENTS[i], names, 1);
        state.place[i] = glGetUniformLocation(state.program[i], "place");
        state.tint[i] = glGetUniformLocation(state.program[i], "tint");
    }
    for (int i = 0; i < TEXTURES; i++)
        make_texture(i);
    make_full_quad();
    glBlendFunc(GL_SRC_ALPHA, GL_ONE_MINUS_SRC_ALPHA);
}

static void draw_square(int index, unsigned number)
{
    float step = 2.0f / (float)state.columns;
    float x = -1.0f + step * ((float)(index % state.columns) + 0.5f);
    float y = -1.0f + step * ((float)(index / state.columns) + 0.5f);
    float phase = (float)index * 0.37f + (float)(number % 6283) * 0.001f;
    int which = index % PROGRAMS;

    glUseProgram(state.program[which]);
    glBindTexture(GL_TEXTURE_2D, state.texture[index / 3 % TEXTURES]);
    if (index % 8 == 0)
        glEnable(GL_BLEND);
    else if (index % 8 == 4)
        glDisable(GL_BLEND);
    glUniform4f(state.place[which], x, y, step * 0.4f, phase);
    glUniform4f(state.tint[which], 0.6f + 0.4f * sinf(phase), 0.9f, 0.6f + 0.4f * cosf(phase), 0.8f);
    glDrawArrays(GL_TRIANGLE_STRIP, 0, 4);
}

static void draws_draw(unsigned number)
{
    glClearColor(0.05f, 0.05f, 0.1f, 1);
    glClear(GL_COLOR_BUFFER_BIT);
    for (int i = 0; i < state.draws; i++)
        draw_square(i, number);
}

const struct scene draws_scene = {
    .name = "draws", .load_unit = "draws a frame", .default_load = 2000, .max_load = 1000000,
    .width = 256, .height = 256, .open = draws_open, .draw = draws_draw,
};
