#include "sealed_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/stat.h>

uint64_t iso_sealed_bytes(int fd, uint64_t at_least, bool dmabuf)
{
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals < 0 && dmabuf && errno == EINVAL)
        seals = F_SEAL_SHRINK;
    if (seals < 0 || fstat(fd, &status) < 0)
        return 0;
    if (!(seals & F_SEAL_SHRINK) || status.st_size <= 0 || (uint64_t)status.st_size < at_least) {
        errno = EPROTO;
        return 0;
    }
    return (uint64_t)status.st_size;
}

void *iso_map_sealed(int fd, uint64_t at_least, bool dmabuf, uint64_t *bytes)
{
    *bytes = iso_sealed_bytes(fd, at_least, dmabuf);
    if (!*bytes)
        return NULL;
    void *memory = mmap(NULL, (size_t)*bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return memory == MAP_FAILED ? NULL : memory;
}
