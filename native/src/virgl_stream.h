/*
 * virgl's command streams, as far as this project looks into them: numbers of commands and objects, and which word of a
 * command says what. Word 0 is the header {number: 8 bits, object: 8, length in words behind it: 16}.
 *
 * Source: virglrenderer's virgl_protocol.h, 0.10.4 and 1.1.0, and what vrend_decode.c makes of it.
 */
#ifndef ISOREND_VIRGL_STREAM_H
#define ISOREND_VIRGL_STREAM_H

#include <stdint.h>

enum iso_virgl_command {
    ISO_VIRGL_NOP = 0,
    ISO_VIRGL_CREATE_OBJECT = 1,
    ISO_VIRGL_DESTROY_OBJECT = 3,
    ISO_VIRGL_SET_FRAMEBUFFER_STATE = 5,
    ISO_VIRGL_CLEAR = 7,
    ISO_VIRGL_DRAW_VBO = 8,
    ISO_VIRGL_RESOURCE_INLINE_WRITE = 9,
    ISO_VIRGL_BLIT = 16,
    ISO_VIRGL_RESOURCE_COPY_REGION = 17,
    ISO_VIRGL_GET_QUERY_RESULT = 21,
    ISO_VIRGL_SET_STREAMOUT_TARGETS = 25,
    ISO_VIRGL_SET_SUB_CTX = 28,
    ISO_VIRGL_CREATE_SUB_CTX = 29,
    ISO_VIRGL_DESTROY_SUB_CTX = 30,
    ISO_VIRGL_SET_SHADER_BUFFERS = 34,
    ISO_VIRGL_SET_SHADER_IMAGES = 35,
    ISO_VIRGL_LAUNCH_GRID = 37,
    ISO_VIRGL_SET_ATOMIC_BUFFERS = 40,
    ISO_VIRGL_GET_QUERY_RESULT_QBO = 42,
    ISO_VIRGL_TRANSFER3D = 43,
    ISO_VIRGL_COPY_TRANSFER3D = 45,
    ISO_VIRGL_CLEAR_TEXTURE = 47,
    ISO_VIRGL_PIPE_RESOURCE_CREATE = 48,
    ISO_VIRGL_PIPE_RESOURCE_SET_TYPE = 49,
    ISO_VIRGL_GET_MEMORY_INFO = 50,
    ISO_VIRGL_LINK_SHADER = 52, /* those between it and the next are of video codecs */
    ISO_VIRGL_CLEAR_SURFACE = 62,
};

enum iso_virgl_object {
    ISO_VIRGL_OBJECT_SHADER = 4,
    ISO_VIRGL_OBJECT_SURFACE = 8,
    ISO_VIRGL_OBJECT_QUERY = 9,
    ISO_VIRGL_OBJECT_STREAMOUT_TARGET = 10,
    ISO_VIRGL_OBJECT_MSAA_SURFACE = 11,
};

enum { ISO_VIRGL_SHADER_STAGES = 6, ISO_VIRGL_STAGE_SLOTS = 32, ISO_VIRGL_COLOR_BUFFERS = 8, ISO_VIRGL_STREAMOUTS = 16 };

/* Sizes of commands that come in one size, in words behind the header. */
enum { ISO_VIRGL_RESOURCE_CREATE_WORDS = 11, ISO_VIRGL_SET_TYPE_WORDS = 8, ISO_VIRGL_SET_TYPE_PLANE_WORDS = 2 };

static inline uint32_t iso_virgl_number(uint32_t header)
{
    return header & 0xff;
}

static inline uint32_t iso_virgl_object(uint32_t header)
{
    return header >> 8 & 0xff;
}

static inline uint32_t iso_virgl_length(uint32_t header)
{
    return header >> 16;
}

#endif
