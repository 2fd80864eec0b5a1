/* What Python does in a plane_world so that contexts share resources, and wait for each other. */
#include "plane_world.h"

#include <errno.h>
#include <string.h>

/* So that there is something to be kept in order, and mostly between contexts that live. */
static void share(struct world *world, uint32_t id)
{
    static const struct iso_texture texture = {.target = 2, .format = 1, .width = 16, .height = 16, .depth = 1, .array_size = 1};
    const uint8_t who = input_u8(&world->input);

    iso_plane_resource_set(world->plane, id, &texture);
    for (uint32_t i = 0; i < CONTEXTS; i++)
        if (who >> i & 1)
            iso_plane_resource_attach(world->plane, id, 1 + i);
}

static void mirror(struct world *world, uint32_t id)
{
    const uint8_t how = input_u8(&world->input);

    iso_plane_resource_mirror(world->plane, id, how % (CONTEXTS + 1), how & 128 ? &world->mirrors[id] : NULL);
}

static void reserve(struct world *world, uint32_t ctx_id)
{
    struct played *played = any_lane(world);

    if (played && !iso_plane_lane_reserve(world->plane, played->lane, ctx_id, ++world->token))
        world->slots[world->slot_count++ % SLOTS] = world->token;
}

/* On the right lane, mostly; and places that are filled already. */
static void fill(struct world *world)
{
    static const uint8_t message[4096];
    struct played *played = any_lane(world);
    const uint8_t how = input_u8(&world->input);
    const uint64_t slot = world->slots[how % SLOTS];
    const uint32_t len = how & 64 ? 0 : input_number(&world->input) % sizeof(message);

    if (!played || !slot)
        return;
    int got = iso_plane_lane_fill(world->plane, played->lane, slot, how & 128 ? ISO_FLAG_COMPLETE : 0, ++world->token, message, len);
    CHECK(got == 0 || got == -EPIPE || got == -ENOENT);
    if (!got) /* once is enough */
        CHECK(iso_plane_lane_fill(world->plane, played->lane, slot, 0, 0, message, 8) != 0);
}

static void look(struct world *world)
{
    struct played *played = any_lane(world);
    struct iso_lane_progress progress;

    if (!played)
        return;
    iso_plane_lane_progress(world->plane, played->lane, &progress);
    CHECK(!progress.blocked || progress.backlog);
    CHECK(!played->lane->lost || !progress.blocked);
}

void python_shares(struct world *world)
{
    const uint8_t how = input_u8(&world->input);
    const uint32_t id = 1 + (how >> 3) % RESOURCES;

    switch (how % 8) {
    case 0:
        share(world, id);
        break;
    case 1:
        mirror(world, id);
        break;
    case 2:
        iso_plane_resource_written(world->plane, id);
        break;
    case 3:
        if (!iso_plane_resource_sync(world->plane, id, SYNC_TOKEN | ++world->token))
            world->syncs_asked++;
        break;
    case 4:
        reserve(world, 1 + (how >> 3) % CONTEXTS);
        break;
    case 5:
        fill(world);
        break;
    case 6:
        look(world);
        break;
    default:
        iso_plane_resource_guest_memory(world->plane, id);
    }
    CHECK(!world->plane->ready); /* whoever can go on has gone on */
}
