/*
 * A virgl command stream before virglrenderer gets it: what is found to be right has to be right word by word, and a resource
 * that is written by its name has to count as written.
 */
#include "input.h"
#include "ring.h"
#include "virgl_limits.h"
#include "virgl_stream.h"

enum { LIMIT = 1000, CREATE_SHADER = 1 | 4 << 8, SHADER_WORDS = 5, WATCHED = 4 };

#ifndef ISO_FUZZ_CANARY
static void check_is_right(const uint32_t *stream, uint32_t words)
{
    while (words) {
        const uint32_t length = *stream >> 16, *argument = stream + 1;
        CHECK(length < words);
        if ((*stream & 0xffff) == CREATE_SHADER && length >= SHADER_WORDS) {
            CHECK((argument[2] & 0x7fffffff) <= LIMIT);
            CHECK(argument[3] <= LIMIT || argument[3] <= ISO_VIRGL_SPARE_TOKENS);
        }
        words -= 1 + length;
        stream += 1 + length;
    }
}

/* The word that names a resource which the command writes to; 0 if there is none. */
static uint32_t target_word(uint32_t header)
{
    switch (header & 0xff) {
    case ISO_VIRGL_RESOURCE_INLINE_WRITE:
    case ISO_VIRGL_RESOURCE_COPY_REGION:
    case ISO_VIRGL_TRANSFER3D:
    case ISO_VIRGL_CLEAR_TEXTURE:
        return 1;
    case ISO_VIRGL_BLIT:
        return 4;
    }
    return 0;
}

static void check_is_written(const uint32_t *stream, uint32_t words, const bool *written)
{
    for (; words; words -= 1 + (*stream >> 16), stream += 1 + (*stream >> 16)) {
        const uint32_t word = target_word(*stream);
        if (word && word <= *stream >> 16 && stream[word] && stream[word] <= WATCHED)
            CHECK(written[stream[word]]);
    }
}

static void check(const uint32_t *stream, uint32_t words, struct iso_virgl_usage *usage, bool *written)
{
    struct iso_virgl_finding finding = {.text = ""};

    memset(written, 0, WATCHED + 1);
    uint32_t status = iso_virgl_check(stream, words, LIMIT, usage, &finding);
    if (status == ISO_STATUS_OK) {
        check_is_right(stream, words);
        check_is_written(stream, words, written);
    } else {
        CHECK(status == ISO_STATUS_INVALID_PARAMETER || status == ISO_STATUS_OUT_OF_MEMORY);
        CHECK(finding.text[0] && memchr(finding.text, 0, sizeof(finding.text)));
        for (uint32_t id = 1; id <= WATCHED; id++)
            CHECK(written[id]);
    }
}

/* Twice, so that the second time finds the state that the first left. */
static void check_followed(const uint32_t *stream, uint32_t words)
{
    struct iso_virgl_usage *usage = iso_virgl_usage_new();
    bool written[WATCHED + 1];

    CHECK(usage);
    for (uint32_t id = 1; id <= WATCHED; id++)
        CHECK(iso_virgl_watch(id, &written[id]));
    check(stream, words, usage, written);
    check(stream, words, usage, written);
    for (uint32_t id = 1; id <= WATCHED; id++)
        iso_virgl_unwatch(id);
    iso_virgl_usage_free(usage);
}

#else
/* A bug that blind luck does not find: shows that the fuzzer is led by what it reaches and what is compared there. */
static void sing(const uint32_t *stream, uint32_t words)
{
    if (words > SHADER_WORDS && (*stream & 0xffff) == CREATE_SHADER && stream[1] == 0x63616e61)
        __builtin_trap();
}
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint32_t words = (uint32_t)(size / 4);
    uint32_t *stream = malloc(4 * words + 1);

    CHECK(stream);
    if (words)
        memcpy(stream, data, 4 * words);
#ifdef ISO_FUZZ_CANARY
    struct iso_virgl_finding finding = {.text = ""};
    if (iso_virgl_check(stream, words, LIMIT, NULL, &finding) == ISO_STATUS_OK)
        sing(stream, words);
#else
    check_followed(stream, words);
#endif
    free(stream);
    return 0;
}
