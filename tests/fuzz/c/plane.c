/*
 * The way of a command through the plane: a hostile guest, a front end that sets queues up and takes memory away, and
 * workers that keep to the rules.
 */
#include "plane_world.h"

static void worker_works(struct world *world)
{
    struct played *played = any_lane(world);
    const uint8_t how = input_u8(&world->input);

    if (!played)
        return;
    if (how & 1)
        worker_consumes(played);
    if ((how & 2) && played->waiting_count) {
        struct iso_record *waiting = &played->waiting[(how >> 4) % played->waiting_count];
        worker_completes(played, waiting->seq, how >> 2 & 3);
        memmove(waiting, waiting + 1, (size_t)(played->waiting + --played->waiting_count - waiting) * sizeof(*waiting));
    }
    plane_hears(world, played);
    CHECK(!played->lane->lost || played->lane->reported); /* it did nothing wrong */
}

static void (*const steps[])(struct world *) = {
    guest_sends,    guest_sends,    guest_sends,            python_takes,      worker_works,   worker_works,
    front_end_acts, python_answers, python_knows_resources, python_uses_lanes, plane_passes, guest_scribbles,
    python_shares,  python_shares,
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
