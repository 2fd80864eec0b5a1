/*
 * The look at a virgl command stream before virglrenderer gets it (virgl_stream.h): the headers of its commands, what its
 * shaders announce, and what it writes to (virgl_usage.h).
 *
 * A shader's text comes in CREATE_OBJECT: {handle, type, offset, tokens, stream outputs, ..., text}. `offset` is the length
 * of the whole text in bytes; in the further pieces of a long text it has bit 31 and is where the piece begins. virglrenderer
 * (0.10 to 1.1) allocates what both numbers announce, 4 bytes for each token, before it looks at the text: 16 GiB for a
 * stream of 30 bytes.
 *
 * Source: virglrenderer's virgl_protocol.h; vrend_decode.c and vrend_renderer.c for what becomes of the numbers.
 */
#ifndef ISOREND_VIRGL_LIMITS_H
#define ISOREND_VIRGL_LIMITS_H

#include <stdbool.h>
#include <stdint.h>

#include "virgl_usage.h"

#define ISO_VIRGL_MAX_SHADER_BYTES (4u << 20) /* unless told otherwise */
#define ISO_VIRGL_SPARE_TOKENS (64u << 10)    /* that a short text may announce; else it has no more tokens than bytes */

struct iso_virgl_finding {
    bool asks_for_query; /* for a result, which may have to be written when the work is done */
    bool has_blobs;      /* commands that are not for virglrenderer (virgl_blobs.h) */
    char text[128];      /* what is wrong; only with a status other than OK */
};

/*
 * ISO_STATUS_OK; ISO_STATUS_INVALID_PARAMETER for a command that is longer than the stream's rest;
 * ISO_STATUS_OUT_OF_MEMORY for a shader of more than max_shader_bytes of text, or of more tokens than its text can have.
 * `usage`, that of the stream's context, follows it; it may be NULL.
 */
uint32_t iso_virgl_check(const uint32_t *stream, uint32_t words, uint32_t max_shader_bytes, struct iso_virgl_usage *usage,
                         struct iso_virgl_finding *finding);

#endif
