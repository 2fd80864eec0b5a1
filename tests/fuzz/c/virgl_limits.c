/* A virgl command stream before virglrenderer gets it: what is found to be right has to be right word by word. */
#include "input.h"
#include "ring.h"
#include "virgl_limits.h"

enum { LIMIT = 1000, CREATE_SHADER = 1 | 4 << 8, SHADER_WORDS = 5 };

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

#ifdef ISO_FUZZ_CANARY
/* A bug that blind luck does not find: shows that the fuzzer is led by what it reaches and what is compared there. */
static void sing(const uint32_t *stream, uint32_t words)
{
    if (words > SHADER_WORDS && (*stream & 0xffff) == CREATE_SHADER && stream[1] == 0x63616e61)
        __builtin_trap();
}
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct iso_virgl_finding finding = {.text = ""};
    const uint32_t words = (uint32_t)(size / 4);
    uint32_t *stream = malloc(4 * words + 1);

    CHECK(stream);
    if (words)
        memcpy(stream, data, 4 * words);
    uint32_t status = iso_virgl_check(stream, words, LIMIT, &finding);
    if (status == ISO_STATUS_OK) {
        check_is_right(stream, words);
#ifdef ISO_FUZZ_CANARY
        sing(stream, words);
#endif
    } else {
        CHECK(status == ISO_STATUS_INVALID_PARAMETER || status == ISO_STATUS_OUT_OF_MEMORY);
        CHECK(finding.text[0] && memchr(finding.text, 0, sizeof(finding.text)));
    }
    free(stream);
    return 0;
}
