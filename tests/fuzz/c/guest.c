#include "guest.h"

#include <sys/mman.h>
#include <unistd.h>

static struct {
    uint64_t gpa, size, offset;
} const regions[] = {
    {0, GUEST_LOW_BYTES, 0},
    {GUEST_LOW_BYTES, GUEST_NEXT_BYTES, GUEST_LOW_BYTES + 8192},
    {GUEST_HIGH, GUEST_HIGH_BYTES, GUEST_LOW_BYTES + GUEST_NEXT_BYTES + 16384},
};
enum { REGIONS = sizeof(regions) / sizeof(regions[0]) };

static struct iso_guestmem *memory;

static struct iso_guestmem *make(void)
{
    struct iso_guestmem *made = iso_guestmem_new();
    int fd = memfd_create("guest", MFD_CLOEXEC);

    CHECK(made && fd >= 0 && !ftruncate(fd, 1 << 20));
    for (int i = 0; i < REGIONS; i++)
        CHECK(!iso_guestmem_add(made, fd, regions[i].gpa, regions[i].size, GUEST_UVA + regions[i].gpa, regions[i].offset));
    close(fd);
    return made;
}

struct iso_guestmem *guest_memory(void)
{
    uint64_t piece;

    if (!memory)
        memory = make();
    for (int i = 0; i < REGIONS; i++)
        memset(iso_guestmem_at(memory, regions[i].gpa, regions[i].size, &piece), 0, regions[i].size);
    return memory;
}

uint64_t guest_address(struct input *input)
{
    const uint8_t choice = input_u8(input);

    if (choice < 128)
        return input_u16(input);
    if (choice < 160)
        return GUEST_LOW_BYTES - 64 + input_u8(input);
    if (choice < 192)
        return GUEST_LOW_BYTES + GUEST_NEXT_BYTES - input_u8(input);
    if (choice < 224)
        return GUEST_HIGH + (input_u16(input) & (GUEST_HIGH_BYTES - 1));
    return choice < 240 ? GUEST_HIGH + GUEST_HIGH_BYTES - input_u8(input) : input_u64(input);
}

void guest_put(uint64_t gpa, const void *from, size_t len)
{
    const uint8_t *bytes = from;
    uint64_t piece;

    while (len) {
        uint8_t *to = iso_guestmem_at(memory, gpa, len, &piece);
        if (!to)
            return;
        memcpy(to, bytes, piece);
        bytes += piece;
        gpa += piece;
        len -= piece;
    }
}
