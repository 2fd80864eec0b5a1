#include "lane_history.h"

#include "lane.h"

#include <string.h>

void iso_history_note(struct iso_history *history, const struct iso_work *work, uint64_t seq, uint64_t end)
{
    struct iso_placed placed = {.seq = seq, .end = end, .bytes = work->len, .kind = work->kind, .ctx_id = work->ctx_id};
    if (work->kind == ISO_WORK_CONTROL) {
        uint32_t words[2] = {0, 0};
        memcpy(words, work->bytes, work->len < sizeof(words) ? work->len : sizeof(words));
        placed.message = words[0];
        placed.resource_id = words[1];
    } else if (work->kind != ISO_WORK_SUBMIT) {
        placed.bytes = work->transfer.len;
        placed.resource_id = work->transfer.resource_id;
    }
    history->kept[history->count++ % ISO_HISTORY_KEPT] = placed;
}

static const struct iso_placed *nth_latest(const struct iso_history *history, uint64_t nth)
{
    return &history->kept[(history->count - 1 - nth) % ISO_HISTORY_KEPT];
}

static struct iso_placed under_way(const struct iso_history *history, uint64_t begun, uint64_t consumed)
{
    uint64_t kept = history->count < ISO_HISTORY_KEPT ? history->count : ISO_HISTORY_KEPT;
    for (uint64_t nth = 0; nth < kept; nth++) {
        const struct iso_placed *placed = nth_latest(history, nth);
        if (placed->seq == begun)
            return consumed < placed->end ? *placed : (struct iso_placed){0};
    }
    if (!begun || !kept || begun > nth_latest(history, kept - 1)->seq)
        return (struct iso_placed){0};
    return (struct iso_placed){.seq = begun, .kind = ISO_PLACED_UNKNOWN};
}

void iso_history_tell(const struct iso_history *history, uint64_t begun, uint64_t consumed, struct iso_lane_history *out)
{
    *out = (struct iso_lane_history){.count = history->count < ISO_HISTORY_LATEST ? (uint32_t)history->count : ISO_HISTORY_LATEST,
                                     .under_way = under_way(history, begun, consumed)};
    for (uint32_t i = 0; i < out->count; i++)
        out->latest[i] = *nth_latest(history, out->count - 1 - i);
}
