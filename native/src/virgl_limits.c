#include "virgl_limits.h"

#include <stdio.h>

#include "ring.h"

enum { COMMAND_CREATE_OBJECT = 1, COMMAND_GET_QUERY_RESULT = 21, OBJECT_SHADER = 4 };
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

uint32_t iso_virgl_check(const uint32_t *stream, uint32_t words, uint32_t max_shader_bytes, struct iso_virgl_finding *finding)
{
    finding->asks_for_query = false;
    for (uint32_t at = 0; at < words;) {
        const uint32_t number = stream[at] & 0xff, object = stream[at] >> 8 & 0xff, length = stream[at] >> 16;

        if (length > words - at - 1) {
            snprintf(finding->text, sizeof(finding->text), "command %u at word %u has %u words, the stream %u", number, at,
                     length, words);
            return ISO_STATUS_INVALID_PARAMETER;
        }
        if (number == COMMAND_GET_QUERY_RESULT)
            finding->asks_for_query = true;
        if (number == COMMAND_CREATE_OBJECT && object == OBJECT_SHADER && length >= SHADER_WORDS) {
            uint32_t status = check_shader(stream + at + 1, max_shader_bytes, finding);
            if (status != ISO_STATUS_OK)
                return status;
        }
        at += 1 + length;
    }
    return ISO_STATUS_OK;
}
