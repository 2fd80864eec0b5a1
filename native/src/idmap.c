#include "idmap.h"

#include <stdlib.h>

/* The upper bits of the product: the lower ones would be the same for all ids that differ in their upper bits only. */
static uint32_t spread(uint32_t id, uint32_t capacity)
{
    return (uint32_t)((uint64_t)(id * 2654435769u) * capacity >> 32);
}

void *iso_idmap_get(const struct iso_idmap *map, uint32_t id)
{
    if (!map->capacity || !id)
        return NULL;
    for (uint32_t i = spread(id, map->capacity);; i = (i + 1) & (map->capacity - 1)) {
        if (map->slots[i].id == id)
            return map->slots[i].value;
        if (!map->slots[i].id)
            return NULL;
    }
}

static void insert(struct iso_idslot *slots, uint32_t capacity, uint32_t id, void *value)
{
    uint32_t i = spread(id, capacity);
    while (slots[i].id && slots[i].id != id)
        i = (i + 1) & (capacity - 1);
    slots[i] = (struct iso_idslot){id, value};
}

static bool grow(struct iso_idmap *map)
{
    uint32_t capacity = map->capacity ? map->capacity * 2 : 64;
    struct iso_idslot *slots = calloc(capacity, sizeof(*slots));
    if (!slots)
        return false;
    for (uint32_t i = 0; i < map->capacity; i++)
        if (map->slots[i].id)
            insert(slots, capacity, map->slots[i].id, map->slots[i].value);
    free(map->slots);
    map->slots = slots;
    map->capacity = capacity;
    return true;
}

bool iso_idmap_put(struct iso_idmap *map, uint32_t id, void *value)
{
    if (!id)
        return false;
    bool present = iso_idmap_get(map, id) != NULL;
    if (!present && (map->used + 1) * 4 > map->capacity * 3 && !grow(map))
        return false;
    insert(map->slots, map->capacity, id, value);
    map->used += !present;
    return true;
}

void *iso_idmap_remove(struct iso_idmap *map, uint32_t id)
{
    if (!map->capacity || !id)
        return NULL;
    uint32_t mask = map->capacity - 1, i = spread(id, map->capacity);
    while (map->slots[i].id && map->slots[i].id != id)
        i = (i + 1) & mask;
    if (!map->slots[i].id)
        return NULL;
    void *value = map->slots[i].value;
    /* Close the gap, so that no search stops early at it. */
    for (uint32_t j = (i + 1) & mask; map->slots[j].id; j = (j + 1) & mask) {
        uint32_t home = spread(map->slots[j].id, map->capacity);
        if (((j - home) & mask) >= ((j - i) & mask)) {
            map->slots[i] = map->slots[j];
            i = j;
        }
    }
    map->slots[i] = (struct iso_idslot){0, NULL};
    map->used--;
    return value;
}

void iso_idmap_release(struct iso_idmap *map)
{
    free(map->slots);
    *map = (struct iso_idmap){0};
}
