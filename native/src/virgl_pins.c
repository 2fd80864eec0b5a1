#include "virgl_pins.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { PAGE_ORDER = 12, ORDERS = 40 };

static struct iso_pin *unused[ORDERS]; /* by order */

static uint32_t order_of(uint64_t bytes)
{
    uint32_t order = PAGE_ORDER;

    while (order < ORDERS && UINT64_C(1) << order < bytes)
        order++;
    return order;
}

static void *map_empty(void *at, uint64_t bytes, int flags)
{
    return mmap(at, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
}

static struct iso_pin *take_place(uint32_t order)
{
    struct iso_pin *pin = unused[order];

    if (pin) {
        unused[order] = pin->next;
        return pin;
    }
    pin = malloc(sizeof(*pin));
    if (!pin)
        return NULL;
    *pin = (struct iso_pin){.memory = map_empty(NULL, UINT64_C(1) << order, 0), .order = order};
    if (pin->memory != MAP_FAILED)
        return pin;
    free(pin);
    return NULL;
}

struct iso_pin *iso_pin_new(int fd, uint64_t offset, uint64_t bytes)
{
    const uint32_t order = order_of(bytes);

    if (!bytes || order >= ORDERS) {
        errno = EINVAL;
        return NULL;
    }
    struct iso_pin *pin = take_place(order);
    if (!pin)
        return NULL;
    if (mmap(pin->memory, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, (off_t)offset) != MAP_FAILED)
        return pin;
    int error = errno;
    iso_pin_release(pin);
    errno = error;
    return NULL;
}

/* A place that cannot be emptied stays as it is and is used by nobody. */
void iso_pin_release(struct iso_pin *pin)
{
    if (map_empty(pin->memory, UINT64_C(1) << pin->order, MAP_FIXED) == MAP_FAILED)
        return;
    pin->next = unused[pin->order];
    unused[pin->order] = pin;
}
