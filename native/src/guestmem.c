#include "guestmem.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

struct region {
    uint64_t gpa, size, uva;
    uint8_t *host;
    void *map; /* page-aligned start and length of the mapping, for munmap */
    size_t map_len;
};

struct iso_guestmem {
    _Atomic uint32_t refs;
    uint32_t count;
    struct region regions[ISO_GUESTMEM_MAX_REGIONS];
};

struct iso_guestmem *iso_guestmem_new(void)
{
    struct iso_guestmem *mem = calloc(1, sizeof(*mem));
    if (mem)
        atomic_store(&mem->refs, 1);
    return mem;
}

struct iso_guestmem *iso_guestmem_ref(struct iso_guestmem *mem)
{
    if (mem)
        atomic_fetch_add(&mem->refs, 1);
    return mem;
}

void iso_guestmem_unref(struct iso_guestmem *mem)
{
    if (!mem || atomic_fetch_sub(&mem->refs, 1) != 1)
        return;
    for (uint32_t i = 0; i < mem->count; i++)
        munmap(mem->regions[i].map, mem->regions[i].map_len);
    free(mem);
}

static bool overlaps(const struct iso_guestmem *mem, uint64_t gpa, uint64_t size)
{
    for (uint32_t i = 0; i < mem->count; i++)
        if (gpa < mem->regions[i].gpa + mem->regions[i].size && mem->regions[i].gpa < gpa + size)
            return true;
    return false;
}

/* A mapping that reaches past the end of its file would be a SIGBUS waiting to happen. Block devices and the like report
 * no size and are let through. */
static bool file_too_short(int fd, uint64_t end)
{
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size < end;
}

int iso_guestmem_add(struct iso_guestmem *mem, int fd, uint64_t gpa, uint64_t size, uint64_t uva, uint64_t offset)
{
    uint64_t ends;
    if (mem->count == ISO_GUESTMEM_MAX_REGIONS)
        return -ENOSPC;
    if (!size || __builtin_add_overflow(gpa, size, &ends) || __builtin_add_overflow(uva, size, &ends) ||
        __builtin_add_overflow(offset, size, &ends) || ends > INT64_MAX || overlaps(mem, gpa, size))
        return -EINVAL;
    if (file_too_short(fd, ends))
        return -EINVAL;
    /* The offset need not be page aligned: map from the file's start, as the protocol's own examples do. */
    void *map = mmap(NULL, offset + size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (map == MAP_FAILED)
        return -errno;
    madvise(map, offset + size, MADV_DONTDUMP); /* a core dump of the master must not hold the guest's memory */
    mem->regions[mem->count++] = (struct region){
        .gpa = gpa, .size = size, .uva = uva, .host = (uint8_t *)map + offset, .map = map, .map_len = offset + size};
    return 0;
}

uint8_t *iso_guestmem_at(const struct iso_guestmem *mem, uint64_t gpa, uint64_t len, uint64_t *contiguous)
{
    for (uint32_t i = 0; mem && i < mem->count; i++) {
        const struct region *region = &mem->regions[i];
        if (gpa < region->gpa || gpa - region->gpa >= region->size)
            continue;
        uint64_t left = region->size - (gpa - region->gpa);
        *contiguous = len < left ? len : left;
        return region->host + (gpa - region->gpa);
    }
    return NULL;
}

void *iso_guestmem_at_uva(const struct iso_guestmem *mem, uint64_t uva, uint64_t len)
{
    for (uint32_t i = 0; mem && i < mem->count; i++) {
        const struct region *region = &mem->regions[i];
        if (uva >= region->uva && uva - region->uva < region->size && len <= region->size - (uva - region->uva))
            return region->host + (uva - region->uva);
    }
    return NULL;
}

bool iso_guestmem_contains(const struct iso_guestmem *mem, uint64_t gpa, uint64_t len)
{
    uint64_t piece;
    if (len > UINT64_MAX - gpa)
        return false;
    for (; len; gpa += piece, len -= piece)
        if (!iso_guestmem_at(mem, gpa, len, &piece))
            return false;
    return true;
}

bool iso_guestmem_read(const struct iso_guestmem *mem, uint64_t gpa, void *to, size_t len)
{
    uint64_t piece;
    for (uint8_t *at = to; len; at += piece, gpa += piece, len -= piece) {
        const uint8_t *from = iso_guestmem_at(mem, gpa, len, &piece);
        if (!from)
            return false;
        memcpy(at, from, piece);
    }
    return true;
}

bool iso_guestmem_write(const struct iso_guestmem *mem, uint64_t gpa, const void *from, size_t len)
{
    uint64_t piece;
    for (const uint8_t *at = from; len; at += piece, gpa += piece, len -= piece) {
        uint8_t *to = iso_guestmem_at(mem, gpa, len, &piece);
        if (!to)
            return false;
        memcpy(to, at, piece);
    }
    return true;
}
