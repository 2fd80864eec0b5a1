/*
 * virglrenderer's header with what this project needs of it: callbacks version 4 and per-context fences, which 0.10 calls
 * unstable and 1.x does not. ISO_VIRGL_VERSION is set by the build: major * 10000 + minor * 100 + micro.
 */
#ifndef ISOREND_VIRGL_API_H
#define ISOREND_VIRGL_API_H

#ifndef ISO_VIRGL_VERSION
#error "ISO_VIRGL_VERSION is not set"
#endif

#define VIRGL_RENDERER_UNSTABLE_APIS 1
#include <virglrenderer.h>

/* Declared by virglrenderer.h, defined in none of its installed headers: the box of a transfer, in texels. */
struct virgl_box {
    uint32_t x, y, z;
    uint32_t w, h, d;
};

#endif
