#include "gl.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

void die(int code, const char *format, ...)
{
    va_list arguments;

    fputs("isorend-bench-client: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(code);
}

int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static void attach_shader(GLuint program, GLenum type, const char *source)
{
    GLuint shader = glCreateShader(type);
    GLint compiled = GL_FALSE;
    char log[2048] = "no log";

    glShaderSource(shader, 1, &source, NULL);
    glCompileShader(shader);
    glGetShaderiv(shader, GL_COMPILE_STATUS, &compiled);
    if (!compiled) {
        glGetShaderInfoLog(shader, sizeof log, NULL, log);
        die(1, "a shader does not compile: %s", log);
    }
    glAttachShader(program, shader);
    glDeleteShader(shader);
}

GLuint make_program(const char *vertex, const char *fragment, const char *const *names, size_t name_count)
{
    GLuint program = glCreateProgram();
    GLint linked = GL_FALSE;
    char log[2048] = "no log";

    attach_shader(program, GL_VERTEX_SHADER, vertex);
    attach_shader(program, GL_FRAGMENT_SHADER, fragment);
    for (size_t i = 0; i < name_count; i++)
        glBindAttribLocation(program, (GLuint)i, names[i]);
    glLinkProgram(program);
    glGetProgramiv(program, GL_LINK_STATUS, &linked);
    if (!linked) {
        glGetProgramInfoLog(program, sizeof log, NULL, log);
        die(1, "a program does not link: %s", log);
    }
    glUseProgram(program);
    return program;
}

GLuint make_buffer(GLenum target, const void *data, size_t size)
{
    GLuint buffer;

    glGenBuffers(1, &buffer);
    glBindBuffer(target, buffer);
    glBufferData(target, (GLsizeiptr)size, data, data ? GL_STATIC_DRAW : GL_STREAM_DRAW);
    return buffer;
}

GLuint make_full_quad(void)
{
    static const GLfloat corners[] = {-1, -1, 1, -1, -1, 1, 1, 1};
    GLuint buffer = make_buffer(GL_ARRAY_BUFFER, corners, sizeof corners);

    glVertexAttribPointer(0, 2, GL_FLOAT, GL_FALSE, 0, NULL);
    glEnableVertexAttribArray(0);
    return buffer;
}

void check_gl(const char *when)
{
    GLenum error = glGetError();

    if (error != GL_NO_ERROR)
        die(1, "GL error 0x%04x %s", error, when);
}
