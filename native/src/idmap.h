/* A map from 32-bit ids that a guest chose to pointers. Ids are spread by a multiplicative hash; id 0 is never stored. */
#ifndef ISOREND_IDMAP_H
#define ISOREND_IDMAP_H

#include <stdbool.h>
#include <stdint.h>

struct iso_idmap {
    struct iso_idslot {
        uint32_t id;
        void *value;
    } *slots;
    uint32_t capacity; /* a power of two, or 0 before the first insertion */
    uint32_t used;     /* live entries */
};

void *iso_idmap_get(const struct iso_idmap *map, uint32_t id);
/* Stores or replaces. Returns false when out of memory (the map is as it was). */
bool iso_idmap_put(struct iso_idmap *map, uint32_t id, void *value);
/* Returns what was stored under the id, or NULL. */
void *iso_idmap_remove(struct iso_idmap *map, uint32_t id);
void iso_idmap_release(struct iso_idmap *map);

#endif
