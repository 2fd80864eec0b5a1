/* A guest that changes its memory between two reads of it. Linked with --wrap=iso_guestmem_read. */
#include "guest.h"

static struct input *changes;

bool __real_iso_guestmem_read(const struct iso_guestmem *mem, uint64_t gpa, void *to, size_t len);
bool __wrap_iso_guestmem_read(const struct iso_guestmem *mem, uint64_t gpa, void *to, size_t len);

void guest_changes(struct input *input)
{
    changes = input;
}

bool __wrap_iso_guestmem_read(const struct iso_guestmem *mem, uint64_t gpa, void *to, size_t len)
{
    if (changes && input_more(changes) && input_u8(changes) < 64) {
        uint8_t byte = input_u8(changes);
        guest_put(guest_address(changes), &byte, 1);
    }
    return __real_iso_guestmem_read(mem, gpa, to, len);
}
