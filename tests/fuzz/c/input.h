/* A fuzzer's input, taken from the front. Where it has ended there are zeros, so every input means something. */
#ifndef ISOREND_FUZZ_INPUT_H
#define ISOREND_FUZZ_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What must hold whatever the input is. */
#define CHECK(condition)                                                                                                       \
    do {                                                                                                                       \
        if (!(condition)) {                                                                                                    \
            fprintf(stderr, "%s:%d: CHECK(%s) does not hold\n", __FILE__, __LINE__, #condition);                               \
            abort();                                                                                                           \
        }                                                                                                                      \
    } while (0)

struct input {
    const uint8_t *at;
    size_t left;
};

static inline bool input_more(const struct input *input)
{
    return input->left > 0;
}

/* Copies what there is of `size` bytes and fills up with zeros. */
static inline void input_copy(struct input *input, void *to, size_t size)
{
    size_t take = size < input->left ? size : input->left;

    memset(to, 0, size);
    if (take)
        memcpy(to, input->at, take);
    input->at += take;
    input->left -= take;
}

static inline uint8_t input_u8(struct input *input)
{
    uint8_t value;

    input_copy(input, &value, sizeof(value));
    return value;
}

static inline uint16_t input_u16(struct input *input)
{
    uint16_t value;

    input_copy(input, &value, sizeof(value));
    return value;
}

static inline uint32_t input_u32(struct input *input)
{
    uint32_t value;

    input_copy(input, &value, sizeof(value));
    return value;
}

static inline uint64_t input_u64(struct input *input)
{
    uint64_t value;

    input_copy(input, &value, sizeof(value));
    return value;
}

/* One byte that chooses: a small number mostly, an edge sometimes, four bytes of anything if it says so. */
static inline uint32_t input_number(struct input *input)
{
    static const uint32_t edges[] = {0x7fffffff, 0x80000000, 0xffffffff, 0xfffffffe, 1u << 20, 65536, 65535, 4096};
    const uint8_t choice = input_u8(input);

    if (choice < 240)
        return choice;
    return choice < 248 ? edges[choice - 240] : input_u32(input);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
