#include "virgl_limits.h"

#include <stdio.h>

#include "ring.h"
#include "virgl_stream.h"

enum { SHADER_OFFSET = 2, SHADER_TOKENS = 3, SHADER_WORDS = 5 }; /* of the command's words, from 0 */

#define OFFSET_CONTINUES 0x80000000u

static uint32_t check_shader(const uint32_t *shader, uint32_t max_shader_bytes, struct iso_virgl_finding *finding)
{
    const uint32_t offset = shader[SHADER_OFFSET], tokens = shader[SHADER_TOKENS];
    const bool continues = offset & OFFSET_CONTINUES;
    const uint32_t bytes = offset & ~OFFSET_CONTINUES, most = continues ? max_shader_bytes : bytes;

    if (bytes > max_shader_bytes) {
        snprintf(finding->text, sizeof(finding->text), "a shader of %u bytes, more than the %u that are allowed", bytes,
                 max_shader_bytes);
        return ISO_STATUS_OUT_OF_MEMORY;
    }
    if (tokens > most && tokens > ISO_VIRGL_SPARE_TOKENS) {
        snprintf(finding->text, sizeof(finding->text), "a shader of %u tokens in %u bytes", tokens, most);
        return ISO_STATUS_OUT_OF_MEMORY;
    }
    return ISO_STATUS_OK;
}

static bool is_shader(uint32_t header)
{
    return iso_virgl_number(header) == ISO_VIRGL_CREATE_OBJECT && iso_virgl_object(header) == ISO_VIRGL_OBJECT_SHADER &&
           iso_virgl_length(header) >= SHADER_WORDS;
}

static uint32_t check_command(const uint32_t *command, uint32_t max_shader_bytes, struct iso_virgl_finding *finding)
{
    switch (iso_virgl_number(command[0])) {
    case ISO_VIRGL_GET_QUERY_RESULT:
        finding->asks_for_query = true;
        break;
    case ISO_VIRGL_PIPE_RESOURCE_CREATE:
    case ISO_VIRGL_PIPE_RESOURCE_SET_TYPE:
        finding->has_blobs = true;
        break;
    }
    return is_shader(command[0]) ? check_shader(command + 1, max_shader_bytes, finding) : ISO_STATUS_OK;
}

/* Answers for iso_virgl_check(), which sees to it that a refused stream was not followed for nothing. */
static uint32_t walk(const uint32_t *stream, uint32_t words, uint32_t max_shader_bytes, struct iso_virgl_usage *usage,
                     struct iso_virgl_finding *finding)
{
    for (uint32_t at = 0; at < words;) {
        const uint32_t length = iso_virgl_length(stream[at]);

        if (length > words - at - 1) {
            snprintf(finding->text, sizeof(finding->text), "command %u at word %u has %u words, the stream %u",
                     iso_virgl_number(stream[at]), at, length, words);
            return ISO_STATUS_INVALID_PARAMETER;
        }
        uint32_t status = check_command(stream + at, max_shader_bytes, finding);
        if (status != ISO_STATUS_OK)
            return status;
        if (usage)
            iso_virgl_usage_follow(usage, stream + at);
        at += 1 + length;
    }
    return ISO_STATUS_OK;
}

uint32_t iso_virgl_check(const uint32_t *stream, uint32_t words, uint32_t max_shader_bytes, struct iso_virgl_usage *usage,
                         struct iso_virgl_finding *finding)
{
    finding->asks_for_query = finding->has_blobs = false;
    if (usage)
        iso_virgl_usage_begin(usage);
    uint32_t status = walk(stream, words, max_shader_bytes, usage, finding);
    if (status != ISO_STATUS_OK && usage)
        iso_virgl_usage_lose(usage);
    return status;
}
