/*
 * mmap() with a page on each side that may not be touched: AddressSanitizer does not watch mappings, so that a step past the
 * end of guest memory or of a ring would mostly hit the next one. Linked with --wrap=mmap --wrap=munmap.
 */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

void *__real_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *address, size_t length);
void *__wrap_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *address, size_t length);

static size_t whole_pages(size_t length)
{
    return (length + PAGE - 1) / PAGE * PAGE;
}

void *__wrap_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    if (address || !length)
        return __real_mmap(address, length, protection, flags, fd, offset);
    uint8_t *outer = __real_mmap(NULL, whole_pages(length) + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (outer == MAP_FAILED)
        return MAP_FAILED;
    void *inner = __real_mmap(outer + PAGE, length, protection, flags | MAP_FIXED, fd, offset);
    if (inner == MAP_FAILED) {
        int error = errno;
        __real_munmap(outer, whole_pages(length) + 2 * PAGE);
        errno = error;
    }
    return inner;
}

int __wrap_munmap(void *address, size_t length)
{
    return __real_munmap((uint8_t *)address - PAGE, whole_pages(length) + 2 * PAGE);
}
