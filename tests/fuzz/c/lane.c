/*
 * A worker that lies: completions of numbers that nobody waits for or that were answered, indices that go back or run ahead,
 * a ring whose every word changes at any time. The guest is right.
 */
#include "plane_world.h"

static void worker_completes_anything(struct world *world)
{
    struct played *played = any_lane(world);
    const uint8_t how = input_u8(&world->input);
    uint64_t seq;

    if (!played)
        return;
    if (how & 1)
        worker_consumes(played);
    if (how & 2)
        seq = input_u8(&world->input); /* around what there is, also again */
    else
        seq = how & 4 ? input_u64(&world->input) : played->lane->next_seq - 1;
    worker_completes(played, seq, input_number(&world->input));
    if (how & 8)
        plane_hears(world, played);
}

static void worker_writes_header(struct world *world)
{
    struct played *played = any_lane(world);
    const uint8_t how = input_u8(&world->input);
    const uint64_t value = how & 64 ? input_u64(&world->input) : input_number(&world->input);

    if (!played)
        return;
    struct iso_ring_header *ring = played->ring;
    played->scribbled = true;
    switch (how % 8) {
    case 0:
        atomic_store(&ring->cmd_head, value);
        break;
    case 1:
        atomic_store(&ring->cmd_tail, value);
        break;
    case 2:
        atomic_store(&ring->worker_sleeping, (uint32_t)value);
        break;
    case 3:
        atomic_store(&ring->cpl_head, value);
        break;
    case 4:
        atomic_store(&ring->cpl_tail, value);
        break;
    case 5:
        atomic_store(&ring->begun, value);
        break;
    case 6:
        atomic_store(&ring->want_room, (uint32_t)value);
        break;
    default:
        ring->cmd_bytes = ring->cpl_entries = (uint32_t)value;
    }
    if (how & 128)
        plane_hears(world, played);
}

/* The records themselves and the staging memory are the worker's to write, too. */
static void worker_scribbles(struct world *world)
{
    struct played *played = any_lane(world);
    const uint32_t at = input_u16(&world->input), len = input_u8(&world->input) % 64;

    if (!played)
        return;
    played->scribbled = true;
    input_copy(&world->input, iso_ring_cmd_base(played->ring) + at, len);
    input_copy(&world->input, played->staging + at % (STAGING_BYTES - 64), len);
    input_copy(&world->input, (uint8_t *)iso_ring_cpl_base(played->ring) + at % 1024, len);
}

static void worker_rings(struct world *world)
{
    struct played *played = any_lane(world);

    if (played)
        plane_hears(world, played);
}

static void (*const steps[])(struct world *) = {
    guest_sends, guest_sends, python_takes, worker_completes_anything, worker_completes_anything, worker_writes_header,
    worker_scribbles, worker_rings, python_knows_resources, python_uses_lanes, python_uses_lanes, plane_passes,
    python_shares, python_shares,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct world world;

    world_open(&world, data, size);
    while (input_more(&world.input))
        steps[input_u8(&world.input) % (sizeof(steps) / sizeof(steps[0]))](&world);
    world_close(&world);
    return 0;
}
