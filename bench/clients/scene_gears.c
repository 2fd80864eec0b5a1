/* `gears`: three lit gears of glxgears' sizes, teeth and colours, as triangles in buffer objects. */
#include "gl.h"
#include "scene.h"

#include <math.h>
#include <stdlib.h>

#define PI 3.14159265358979f

struct vertex {
    GLfloat position[3], normal[3];
};

struct mesh {
    struct vertex *vertices;
    size_t count, capacity;
};

struct gear {
    float inner, outer, width, tooth_depth;
    int teeth;
    float x, y, speed, phase; /* turns by speed * angle + phase degrees */
    GLfloat colour[4];
    GLuint buffer;
    GLsizei count;
};

static struct gear gears[] = {
    {1.0f, 4.0f, 1.0f, 0.7f, 20, -3.0f, -2.0f, 1.0f, 0.0f, {0.8f, 0.1f, 0.0f, 1}, 0, 0},
    {0.5f, 2.0f, 2.0f, 0.7f, 10, 3.1f, -2.0f, -2.0f, -9.0f, {0.0f, 0.8f, 0.2f, 1}, 0, 0},
    {1.3f, 2.0f, 0.5f, 0.7f, 10, -3.1f, 4.2f, -2.0f, -25.0f, {0.2f, 0.2f, 1.0f, 1}, 0, 0},
};

static const char VERTEX[] =
    "attribute vec3 position, normal;\n"
    "uniform mat4 view, projection;\n"
    "uniform vec4 colour;\n"
    "varying vec4 shade;\n"
    "void main() {\n"
    "    float light = max(dot(normalize(mat3(view) * normal), normalize(vec3(5.0, 5.0, 10.0))), 0.0);\n"
    "    shade = vec4(colour.rgb * (0.2 + light), colour.a);\n"
    "    gl_Position = projection * (view * vec4(position, 1.0));\n"
    "}\n";
static const char FRAGMENT[] = "precision mediump float;\n"
                               "varying vec4 shade;\n"
                               "void main() { gl_FragColor = shade; }\n";

static GLint view_location, colour_location;

static void add_triangle(struct mesh *mesh, const GLfloat corners[3][3], const GLfloat normals[3][3])
{
    if (mesh->count + 3 > mesh->capacity) {
        mesh->capacity = mesh->capacity ? 2 * mesh->capacity : 1024;
        mesh->vertices = realloc(mesh->vertices, mesh->capacity * sizeof *mesh->vertices);
        if (!mesh->vertices)
            die(1, "no memory for a gear");
    }
    for (int i = 0; i < 3; i++, mesh->count++)
        for (int axis = 0; axis < 3; axis++) {
            mesh->vertices[mesh->count].position[axis] = corners[i][axis];
            mesh->vertices[mesh->count].normal[axis] = normals[i][axis];
        }
}

/* A flat piece of a face from (x, y)[0] to [3], in order around it, in the plane z that looks along `facing`. */
static void add_flat(struct mesh *mesh, const GLfloat at[4][2], float z, float facing)
{
    const GLfloat up[3][3] = {{0, 0, facing}, {0, 0, facing}, {0, 0, facing}};

    for (int i = 1; i < 3; i++) {
        const GLfloat corners[3][3] = {
            {at[0][0], at[0][1], z}, {at[i][0], at[i][1], z}, {at[i + 1][0], at[i + 1][1], z}};

        add_triangle(mesh, corners, up);
    }
}

/* A wall across the gear's width between two points; `smooth` has normals that point away from the axis, times it. */
static void add_wall(struct mesh *mesh, const GLfloat from[2], const GLfloat to[2], float half, float smooth)
{
    GLfloat flat[2] = {to[1] - from[1], from[0] - to[0]};
    const GLfloat a[3] = {smooth ? from[0] * smooth : flat[0], smooth ? from[1] * smooth : flat[1], 0};
    const GLfloat b[3] = {smooth ? to[0] * smooth : flat[0], smooth ? to[1] * smooth : flat[1], 0};
    const GLfloat first[3][3] = {{from[0], from[1], half}, {from[0], from[1], -half}, {to[0], to[1], half}};
    const GLfloat second[3][3] = {{to[0], to[1], half}, {from[0], from[1], -half}, {to[0], to[1], -half}};
    const GLfloat first_normals[3][3] = {{a[0], a[1], 0}, {a[0], a[1], 0}, {b[0], b[1], 0}};
    const GLfloat second_normals[3][3] = {{b[0], b[1], 0}, {a[0], a[1], 0}, {b[0], b[1], 0}};

    add_triangle(mesh, first, first_normals);
    add_triangle(mesh, second, second_normals);
}

static void at_angle(GLfloat point[2], float radius, float angle)
{
    point[0] = radius * cosf(angle);
    point[1] = radius * sinf(angle);
}

/* One tooth and its share of the disc: both faces, the walls around the tooth, the wall of the hole. */
static void add_tooth(struct mesh *mesh, const struct gear *gear, int index)
{
    float root = gear->outer - gear->tooth_depth / 2, tip = gear->outer + gear->tooth_depth / 2;
    float half = gear->width / 2, start = 2 * PI * (float)index / (float)gear->teeth;
    float quarter = 2 * PI / (float)gear->teeth / 4;
    const float radii[5] = {root, tip, tip, root, root};
    GLfloat rim[5][2], hole[2][2], base[2];

    for (int i = 0; i < 5; i++)
        at_angle(rim[i], radii[i], start + (float)i * quarter);
    at_angle(hole[0], gear->inner, start);
    at_angle(hole[1], gear->inner, start + 4 * quarter);
    at_angle(base, root, start + 3 * quarter);
    for (int side = 1; side >= -1; side -= 2) {
        const GLfloat disc[4][2] = {{hole[0][0], hole[0][1]}, {rim[0][0], rim[0][1]}, {base[0], base[1]},
                                    {hole[1][0], hole[1][1]}};
        const GLfloat gap[4][2] = {{hole[1][0], hole[1][1]}, {base[0], base[1]}, {rim[4][0], rim[4][1]},
                                   {hole[1][0], hole[1][1]}};
        const GLfloat tooth[4][2] = {{rim[0][0], rim[0][1]}, {rim[1][0], rim[1][1]}, {rim[2][0], rim[2][1]},
                                     {rim[3][0], rim[3][1]}};

        add_flat(mesh, disc, (float)side * half, (float)side);
        add_flat(mesh, gap, (float)side * half, (float)side);
        add_flat(mesh, tooth, (float)side * half, (float)side);
    }
    for (int i = 0; i < 4; i++)
        add_wall(mesh, rim[i], rim[i + 1], half, 0);
    add_wall(mesh, hole[0], hole[1], half, -1);
}

/* projection: that of glxgears, a frustum from 5 to 60 with an edge of 1 at the near plane. */
static void set_projection(GLuint program, int width, int height)
{
    const float near = 5, far = 60, edge = (float)height / (float)width;
    const GLfloat projection[16] = {
        near, 0, 0, 0, 0, near / edge, 0, 0, 0, 0, -(far + near) / (far - near), -1,
        0, 0, -2 * far * near / (far - near), 0,
    };

    glUniformMatrix4fv(glGetUniformLocation(program, "projection"), 1, GL_FALSE, projection);
}

static void gears_open(int width, int height, int load)
{
    static const char *const names[] = {"position", "normal"};
    GLuint program = make_program(VERTEX, FRAGMENT, names, 2);

    (void)load;
    view_location = glGetUniformLocation(program, "view");
    colour_location = glGetUniformLocation(program, "colour");
    set_projection(program, width, height);
    for (size_t i = 0; i < sizeof gears / sizeof *gears; i++) {
        struct mesh mesh = {0};

        for (int tooth = 0; tooth < gears[i].teeth; tooth++)
            add_tooth(&mesh, &gears[i], tooth);
        gears[i].buffer = make_buffer(GL_ARRAY_BUFFER, mesh.vertices, mesh.count * sizeof *mesh.vertices);
        gears[i].count = (GLsizei)mesh.count;
        free(mesh.vertices);
    }
    glEnable(GL_DEPTH_TEST);
    glEnableVertexAttribArray(0);
    glEnableVertexAttribArray(1);
}

/* The scene is seen from 40 away, turned by 20 degrees about x and 30 about y; the gear lies in it at x, y. */
static void set_view(const struct gear *gear, float degrees)
{
    const float cx = cosf(20 * PI / 180), sx = sinf(20 * PI / 180), cy = cosf(30 * PI / 180), sy = sinf(30 * PI / 180);
    const float c = cosf(degrees * PI / 180), s = sinf(degrees * PI / 180);
    /* rows of rotate_x * rotate_y */
    const float turn[3][3] = {{cy, 0, sy}, {sx * sy, cx, -sx * cy}, {-cx * sy, sx, cx * cy}};
    GLfloat view[16] = {0};

    for (int row = 0; row < 3; row++) {
        view[row] = turn[row][0] * c + turn[row][1] * s;
        view[4 + row] = -turn[row][0] * s + turn[row][1] * c;
        view[8 + row] = turn[row][2];
        view[12 + row] = turn[row][0] * gear->x + turn[row][1] * gear->y;
    }
    view[14] -= 40;
    view[15] = 1;
    glUniformMatrix4fv(view_location, 1, GL_FALSE, view);
}

static void gears_draw(unsigned number)
{
    float angle = (float)(number % 720) * 0.5f;

    glClearColor(0, 0, 0, 1);
    glClear(GL_COLOR_BUFFER_BIT | GL_DEPTH_BUFFER_BIT);
    for (size_t i = 0; i < sizeof gears / sizeof *gears; i++) {
        set_view(&gears[i], gears[i].speed * angle + gears[i].phase);
        glUniform4fv(colour_location, 1, gears[i].colour);
        glBindBuffer(GL_ARRAY_BUFFER, gears[i].buffer);
        glVertexAttribPointer(0, 3, GL_FLOAT, GL_FALSE, sizeof(struct vertex), NULL);
        glVertexAttribPointer(1, 3, GL_FLOAT, GL_FALSE, sizeof(struct vertex), (void *)(3 * sizeof(GLfloat)));
        glDrawArrays(GL_TRIANGLES, 0, gears[i].count);
    }
}

const struct scene gears_scene = {
    .name = "gears", .width = 300, .height = 300, .present = true, .open = gears_open, .draw = gears_draw,
};
