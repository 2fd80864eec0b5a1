/* Small helpers around GLES 2, and how the program ends when something is wrong. */
#ifndef BENCH_GL_H
#define BENCH_GL_H

#include <GLES2/gl2.h>
#include <stddef.h>
#include <stdint.h>

/* Says "isorend-bench-client: ..." in one line on stderr and exits with `code`: 2 for a wrong command line, else 1. */
_Noreturn void die(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* CLOCK_MONOTONIC in nanoseconds. */
int64_t now_ns(void);

/* A linked program in use; attribute `names[i]` has location i. Ends the process with the compiler's log if it fails. */
GLuint make_program(const char *vertex, const char *fragment, const char *const *names, size_t name_count);

/* A buffer object with `size` bytes, bound to `target`; `data` may be NULL. */
GLuint make_buffer(GLenum target, const void *data, size_t size);

/* Two triangles that cover the whole picture, as attribute 0, two floats a vertex; draw them as a strip of 4. */
GLuint make_full_quad(void);

/* Ends the process if GL has recorded an error. `when` is for the message. */
void check_gl(const char *when);

#endif
