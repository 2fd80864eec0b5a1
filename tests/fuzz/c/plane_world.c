#include "plane_world.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    QUEUE_NUM = 32,
    RINGS = 0x0000, /* of queue 0; 0x800 further on those of queue 1 */
    COMMANDS = 0x1000,
    COMMANDS_END = 0xe000,
    TABLES = 0xe000, /* indirect tables */
    BUFFER_BYTES = (int)(ISO_COMMAND_MAX_BYTES + 4096),
};

static uint64_t ring_gpa(uint32_t queue)
{
    return RINGS + 0x800ull * queue;
}

/* ---- the guest ---- */

static const uint32_t fast_types[] = {0x0207, 0x0205, 0x0206, 0x0105, 0x0104, 0x0103};
enum { FAST_TYPES = sizeof(fast_types) / sizeof(fast_types[0]), MOST_WORDS = 18 };

/* A command: the header's fields are mostly right, the words behind it anything. Returns its bytes. */
static uint32_t make_command(struct world *world, uint32_t *words)
{
    struct input *input = &world->input;
    const uint8_t kind = input_u8(input), flags = input_u8(input), count = input_u8(input) % (MOST_WORDS - 5);
    struct iso_ctrl_hdr hdr = {
        .type = kind % 8 < FAST_TYPES ? fast_types[kind % 8] : input_number(input),
        .flags = flags & 3,
        .fence_id = ++world->fence_id,
        .ctx_id = flags >> 2 & 7,
        .ring_idx = flags & 32 ? input_u8(input) : 0,
    };

    memcpy(words, &hdr, sizeof(hdr));
    for (uint32_t i = 0; i < count; i++)
        words[6 + i] = input_number(input);
    return sizeof(hdr) + 4 * count;
}

static void put_chain(uint64_t table, uint16_t base, uint64_t at, uint32_t len, uint8_t shape, struct input *input)
{
    const uint32_t first = shape & 1 ? len / 2 : len, answer = shape & 2 ? 24 + input_u8(input) : 24;
    struct iso_vring_desc descs[] = {
        {.addr = at, .len = first, .flags = 1, .next = (uint16_t)(base + 1)},
        {.addr = at + first, .len = len - first, .flags = 1, .next = (uint16_t)(base + 2)},
        {.addr = at + len, .len = shape & 4 ? 0x8000 : 0, .flags = 1, .next = (uint16_t)(base + 3)},
        {.addr = shape & 8 ? guest_address(input) : at + 0x100, .len = answer, .flags = 2},
    };

    if (shape & 16)
        descs[3].flags = (uint16_t)input_u8(input) % 8;
    guest_put(table + 16ull * base, descs, sizeof(descs));
}

void guest_sends(struct world *world)
{
    struct input *input = &world->input;
    const uint32_t queue = input_u8(input) % 8 == 7;
    const uint8_t shape = input_u8(input);
    const uint64_t rings = ring_gpa(queue), at = COMMANDS + world->place;
    uint32_t words[MOST_WORDS + 1] = {0}, len = make_command(world, words);
    uint16_t head = (uint16_t)(world->offered[queue] * 4 % QUEUE_NUM), index = ++world->offered[queue];

    guest_put(at, words, len);
    world->place = (world->place + 0x200) % (COMMANDS_END - COMMANDS);
    if (shape & 32) {
        struct iso_vring_desc table = {.addr = TABLES + 64 * (index % 64u), .len = 64, .flags = 4};
        put_chain(table.addr, 0, at, len, shape, input);
        guest_put(rings + 16ull * head, &table, sizeof(table));
    } else {
        put_chain(rings, head, at, len, shape, input);
    }
    guest_put(rings + 16 * QUEUE_NUM + 4 + 2 * ((index - 1u) % QUEUE_NUM), &head, 2);
    guest_put(rings + 16 * QUEUE_NUM + 2, &index, 2);
    if (shape & 128)
        guest_changes(input);
    if (shape & 64)
        plane_passes(world);
    guest_changes(NULL);
}

void guest_scribbles(struct world *world)
{
    uint8_t bytes[32];
    const uint64_t at = guest_address(&world->input);
    const uint32_t len = input_u8(&world->input) % sizeof(bytes);

    input_copy(&world->input, bytes, len);
    guest_put(at, bytes, len);
}

/* ---- the front end ---- */

static void start_queue(struct world *world, uint32_t queue, uint8_t how)
{
    uint64_t rings = GUEST_UVA + (how & 64 ? guest_address(&world->input) : ring_gpa(queue));
    uint32_t num = how & 128 ? input_number(&world->input) : QUEUE_NUM;
    int kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    iso_plane_queue_setup(world->plane, queue, num, rings, rings + 16ull * num, rings + 16ull * num + 4 + 2ull * num + 4 - 4 * (how & 1),
                          how & 32 ? input_u16(&world->input) : world->offered[queue & 1], how & 1);
    iso_plane_queue_call(world->plane, queue & 1, kick);
    iso_plane_queue_err(world->plane, queue & 1, kick);
    iso_plane_queue_start(world->plane, queue & 1, kick);
    iso_plane_queue_enable(world->plane, queue & 1, true);
    close(kick);
}

void front_end_acts(struct world *world)
{
    const uint8_t how = input_u8(&world->input);
    const uint32_t queue = how >> 4 & 1;

    switch (how % 8) {
    case 0:
    case 1:
        start_queue(world, queue, input_u8(&world->input));
        break;
    case 2:
        iso_plane_queue_stop(world->plane, queue);
        break;
    case 3:
        iso_plane_queue_abandon(world->plane, queue);
        break;
    case 4:
        iso_plane_set_memory(world->plane, NULL);
        break;
    case 5:
        iso_plane_set_memory(world->plane, world->memory);
        break;
    case 6:
        iso_plane_set_ring_idx(world->plane, how & 32);
        break;
    default:
        iso_plane_queue_enable(world->plane, queue, how & 32);
    }
}

/* ---- Python ---- */

static void count_sync(struct world *world, int got, const struct iso_event *event)
{
    if (got != 1 || event->kind != ISO_EVENT_WORK_DONE || !(event->token & SYNC_TOKEN))
        return;
    CHECK(!event->lane && event->status == ISO_STATUS_OK);
    CHECK(++world->syncs_told <= world->syncs_asked);
}

void python_takes(struct world *world)
{
    static uint8_t *buffer;
    struct iso_event event;
    uint64_t capacity = input_u8(&world->input) & 1 ? 64 : BUFFER_BYTES;

    if (!buffer)
        CHECK((buffer = malloc(BUFFER_BYTES)));
    for (int i = 0; i < 256; i++) {
        int got = iso_plane_take(world->plane, &event, buffer, capacity);
        CHECK(got == 0 || got == 1 || (got == -ENOBUFS && event.len > capacity && event.len <= BUFFER_BYTES));
        if (got < 0)
            capacity = BUFFER_BYTES;
        if (!got)
            break;
        if (got == 1 && event.kind == ISO_EVENT_COMMAND) {
            if (world->held_count < MAX_WAITING)
                world->held[world->held_count++] = event.request;
            else
                CHECK(!iso_plane_complete(world->plane, event.request, ISO_RESP_ERR_UNSPEC, NULL, 0));
        }
        count_sync(world, got, &event);
        if (got == 1 && event.kind == ISO_EVENT_WORK_DONE && event.status == ISO_STATUS_OK && event.len)
            CHECK(event.staging_offset + event.len <= STAGING_BYTES);
    }
}

void python_answers(struct world *world)
{
    static const uint8_t payload[2048];
    const uint8_t which = input_u8(&world->input);
    const uint32_t type = input_u8(&world->input) & 1 ? ISO_RESP_OK_NODATA : ISO_RESP_ERR_UNSPEC;

    if (!world->held_count)
        return;
    uint64_t *held = &world->held[which % world->held_count], request = *held;
    *held = world->held[--world->held_count];
    iso_plane_complete(world->plane, request, type, payload, input_number(&world->input) % sizeof(payload));
    CHECK(iso_plane_complete(world->plane, request, type, NULL, 0) == -ENOENT); /* once is enough */
    plane_passes(world);
}

static void set_resource(struct world *world, uint32_t id)
{
    struct input *input = &world->input;
    struct iso_texture texture = {
        .target = input_u8(input) % (ISO_TARGET_MAX + 2), .format = input_number(input), .bind = 1,
        .width = input_number(input), .height = input_number(input), .depth = 1 + input_u8(input) % 4,
        .array_size = 1 + input_u8(input) % 4, .last_level = input_u8(input) % 16, .nr_samples = input_u8(input),
    };

    if (iso_texture_valid(&texture))
        iso_plane_resource_set(world->plane, id, &texture);
}

static void back_resource(struct world *world, uint32_t id)
{
    struct {
        uint64_t addr;
        uint32_t length, padding;
    } entries[8];
    struct iso_backing *backing;
    const uint32_t count = input_u8(&world->input) % 9;

    for (uint32_t i = 0; i < count; i++) {
        entries[i].addr = guest_address(&world->input);
        entries[i].length = input_number(&world->input) << (input_u8(&world->input) & 7);
    }
    if (!iso_backing_new(world->memory, entries, count, &backing)) {
        CHECK(iso_backing_pieces(backing) && iso_backing_pieces(backing) <= count);
        iso_plane_resource_backing(world->plane, id, backing);
        iso_backing_unref(backing);
    }
}

static void remove_resource(struct world *world, uint32_t id)
{
    iso_plane_resource_remove(world->plane, id);
    free(world->pixels[id]);
    world->pixels[id] = NULL;
}

static void set_picture(struct world *world, uint32_t id)
{
    const uint32_t width = 1 + input_u8(&world->input) % 64, height = 1 + input_u8(&world->input) % 64;
    const bool shadow = input_u8(&world->input) & 1;

    if (world->pixels[id]) /* Python says this once */
        return;
    uint8_t *pixels = shadow ? malloc(4 * width * height) : NULL;
    if (iso_plane_resource_picture(world->plane, id, width, height, pixels))
        free(pixels);
    else
        world->pixels[id] = pixels;
}

void python_knows_resources(struct world *world)
{
    struct input *input = &world->input;
    const uint8_t how = input_u8(input);
    const uint32_t id = 1 + (how >> 3) % RESOURCES;
    struct iso_rect rect;

    switch (how % 8) {
    case 0:
        set_resource(world, id);
        break;
    case 1:
        back_resource(world, id);
        break;
    case 2:
        iso_plane_resource_backing(world->plane, id, NULL);
        break;
    case 3:
        iso_plane_resource_attach(world->plane, id, 1 + input_u8(input) % CONTEXTS);
        break;
    case 4:
        iso_plane_resource_detach(world->plane, id, 1 + input_u8(input) % CONTEXTS);
        break;
    case 5:
        set_picture(world, id);
        break;
    case 6:
        rect = (struct iso_rect){input_u8(input) % 64, input_u8(input) % 64, 1 + input_u8(input) % 64, 1 + input_u8(input) % 64};
        iso_plane_scanout_show(world->plane, input_u8(input) % (ISO_MAX_SCANOUTS + 1), input_u8(input) & 1 ? id : 0, &rect);
        iso_plane_scanout_damage(world->plane, input_u8(input) % (ISO_MAX_SCANOUTS + 1), &rect);
        break;
    default:
        remove_resource(world, id);
    }
}

static void read_back(struct world *world, struct iso_lane *lane, uint32_t ctx_id)
{
    struct input *input = &world->input;
    const struct iso_texture texture = {
        .target = 2, .format = 1, .width = 1 + input_u8(input) % 64, .height = 1 + input_u8(input) % 64, .depth = 1, .array_size = 1};
    const struct iso_box box = {input_u8(input) % 64, input_u8(input) % 64, 0, input_number(input), input_number(input), 1};

    iso_plane_lane_readback(world->plane, lane, ctx_id, ++world->token, 1 + input_u8(input) % RESOURCES, &texture, &box);
}

void python_uses_lanes(struct world *world)
{
    static const uint8_t message[ISO_RING_MAX_PAYLOAD + 64];
    struct input *input = &world->input;
    const uint8_t how = input_u8(input);
    const uint32_t ctx_id = 1 + (how >> 4) % CONTEXTS;
    struct iso_lane_progress progress;
    struct iso_lane_history history;

    if (how % 16 < 2) {
        lane_opens(world);
        return;
    }
    struct played *played = any_lane(world);
    if (!played)
        return;
    switch (how % 16) {
    case 2:
    case 3:
        iso_plane_lane_bind(world->plane, played->lane, ctx_id);
        break;
    case 4:
        iso_plane_context_forget(world->plane, ctx_id);
        break;
    case 5:
        iso_plane_lane_lost(world->plane, played->lane);
        break;
    case 6:
        lane_closes(world, played);
        break;
    case 7:
        iso_plane_lane_progress(world->plane, played->lane, &progress);
        CHECK(progress.begun < played->lane->next_seq && progress.consumed <= played->lane->cmd_head);
        iso_plane_lane_history(world->plane, played->lane, &history);
        CHECK(history.count <= ISO_HISTORY_LATEST && history.under_way.seq < played->lane->next_seq);
        break;
    case 8:
    case 9:
    case 10:
        read_back(world, played->lane, ctx_id);
        break;
    case 11:
        iso_plane_lane_release(world->plane, played->lane, input_u8(input));
        break;
    case 12: /* one that nearly fills the ring */
        iso_plane_lane_send(world->plane, played->lane, ctx_id, 0, 0, message, ISO_RING_MAX_PAYLOAD - input_u8(input) + 32);
        break;
    default:
        iso_plane_lane_send(world->plane, played->lane, ctx_id, how & 16 ? ISO_FLAG_COMPLETE : 0, ++world->token, message,
                            input_number(input) % 4096);
    }
}

void plane_passes(struct world *world)
{
    iso_plane_flush(world->plane);
}

/* ---- life ---- */

void world_open(struct world *world, const uint8_t *data, size_t size)
{
    *world = (struct world){.input = {data, size}, .memory = guest_memory(), .plane = iso_plane_new()};
    CHECK(world->plane);
    iso_plane_set_memory(world->plane, world->memory);
    for (uint32_t queue = 0; queue < ISO_QUEUE_COUNT; queue++)
        start_queue(world, queue, 0);
}

void world_close(struct world *world)
{
    struct iso_event event;

    for (uint32_t i = 0; i < LANES; i++)
        if (world->lanes[i].lane)
            lane_closes(world, &world->lanes[i]);
    for (uint32_t queue = 0; queue < ISO_QUEUE_COUNT; queue++) {
        iso_plane_queue_stop(world->plane, queue);
        iso_plane_queue_abandon(world->plane, queue);
        CHECK(iso_plane_queue_open(world->plane, queue) == 0);
    }
    CHECK(!world->plane->timelines && !world->plane->ready);
    while (iso_plane_take(world->plane, &event, NULL, 0) == 1) /* no commands, which were abandoned */
        count_sync(world, 1, &event);
    CHECK(world->syncs_told == world->syncs_asked);
    for (uint32_t id = 1; id <= RESOURCES; id++)
        remove_resource(world, id);
    iso_plane_free(world->plane);
}
