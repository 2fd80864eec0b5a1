/* The commands that the plane does itself; SUBMIT_3D and the 3D transfers (virtio 1.3, 5.7.6.9) never see Python. */
#include "plane_state.h"

enum {
    CMD_SET_SCANOUT = 0x0103,
    CMD_RESOURCE_FLUSH = 0x0104,
    CMD_TRANSFER_TO_HOST_2D = 0x0105,
    CMD_TRANSFER_TO_HOST_3D = 0x0205,
    CMD_TRANSFER_FROM_HOST_3D = 0x0206,
    CMD_SUBMIT_3D = 0x0207,
    MAX_RING_IDX = 63,
};

struct cmd_submit {
    struct iso_ctrl_hdr hdr;
    uint32_t size, padding;
};

struct cmd_transfer_3d {
    struct iso_ctrl_hdr hdr;
    struct iso_box box;
    uint64_t offset;
    uint32_t resource_id, level, stride, layer_stride;
};

_Static_assert(sizeof(struct cmd_submit) == 32, "struct virtio_gpu_cmd_submit");
_Static_assert(sizeof(struct cmd_transfer_3d) == 72, "struct virtio_gpu_transfer_host_3d");

bool iso_command_is_fast(uint32_t type)
{
    switch (type) {
    case CMD_SUBMIT_3D:
    case CMD_TRANSFER_TO_HOST_3D:
    case CMD_TRANSFER_FROM_HOST_3D:
    case CMD_SET_SCANOUT:
    case CMD_RESOURCE_FLUSH:
    case CMD_TRANSFER_TO_HOST_2D:
        return true;
    default:
        return false;
    }
}

static void fail(struct iso_plane *plane, struct iso_request *request, uint32_t type)
{
    iso_request_answer(plane, request, type, NULL, 0);
}

/* One command is larger than any may be. Python hears of the first. */
static void too_large(struct iso_plane *plane, struct iso_request *request, struct iso_lane *lane, enum iso_limit limit)
{
    if (!(lane->limits_told & limit))
        iso_plane_post(plane, (struct iso_event){
                                  .kind = ISO_EVENT_LIMIT, .lane = lane->id, .token = request->hdr.ctx_id, .status = limit});
    lane->limits_told |= limit;
    fail(plane, request, ISO_RESP_ERR_OUT_OF_MEMORY);
}

static void submit(struct iso_plane *plane, struct iso_request *request, struct iso_context *context)
{
    struct cmd_submit cmd;
    struct iso_work *work = &request->work;
    bool fenced = request->hdr.flags & ISO_HDR_FENCE;
    if (!iso_chain_read(plane->mem, &request->chain, 0, &cmd, sizeof(cmd))) {
        fail(plane, request, ISO_RESP_ERR_UNSPEC);
        return;
    }
    if ((cmd.size & 3) || cmd.size > request->chain.out_len - sizeof(cmd)) {
        fail(plane, request, ISO_RESP_ERR_INVALID_PARAMETER);
        return;
    }
    if (cmd.size > ISO_RING_MAX_PAYLOAD) {
        too_large(plane, request, context->lane, ISO_LIMIT_SUBMIT);
        return;
    }
    if (!cmd.size && !fenced) {
        iso_request_answer(plane, request, ISO_RESP_OK_NODATA, NULL, 0);
        return;
    }
    *work = (struct iso_work){.kind = ISO_WORK_SUBMIT,
                              .request = request,
                              .ctx_id = request->hdr.ctx_id,
                              .len = cmd.size,
                              .flags = fenced ? ISO_FLAG_FENCE : 0};
    if (plane->ring_idx && (request->hdr.flags & ISO_HDR_RING_IDX))
        work->ring_idx = request->hdr.ring_idx;
    iso_order_route(plane, context, work);
}

static void transfer(struct iso_plane *plane, struct iso_request *request, struct iso_context *context)
{
    struct cmd_transfer_3d cmd;
    struct iso_rows rows;
    if (!iso_chain_read(plane->mem, &request->chain, 0, &cmd, sizeof(cmd))) {
        fail(plane, request, ISO_RESP_ERR_UNSPEC);
        return;
    }
    struct iso_resource *resource = iso_idmap_get(&plane->resources, cmd.resource_id);
    if (!resource || !iso_resource_is_with(resource, context)) {
        fail(plane, request, ISO_RESP_ERR_INVALID_RESOURCE_ID);
        return;
    }
    if (resource->guest_memory) { /* both sides see the same bytes */
        iso_request_answer(plane, request, ISO_RESP_OK_NODATA, NULL, 0);
        return;
    }
    if (!resource->backing) {
        fail(plane, request, ISO_RESP_ERR_UNSPEC);
        return;
    }
    uint64_t bytes = iso_backing_bytes(resource->backing);
    if (!iso_texture_rows(&resource->texture, &cmd.box, cmd.level, cmd.stride, cmd.layer_stride, cmd.offset, &rows) ||
        rows.offset > bytes || iso_rows_extent(&rows) > bytes - rows.offset) {
        fail(plane, request, ISO_RESP_ERR_INVALID_PARAMETER);
        return;
    }
    /* An answered transfer means that the guest may use its memory again, so the record completes when executed and a
     * fence behind it would add nothing: what is drawn from the resource later is ordered by the ring. */
    uint64_t layer_stride = (uint64_t)rows.row_bytes * rows.rows;
    if (layer_stride > UINT32_MAX || layer_stride * rows.layers > context->lane->staging_bytes) {
        too_large(plane, request, context->lane, ISO_LIMIT_TRANSFER);
        return;
    }
    request->work = (struct iso_work){
        .kind = request->hdr.type == CMD_TRANSFER_TO_HOST_3D ? ISO_WORK_TRANSFER_WRITE : ISO_WORK_TRANSFER_READ,
        .request = request,
        .ctx_id = request->hdr.ctx_id,
        .flags = ISO_FLAG_COMPLETE,
        .rows = rows,
        .backing = iso_backing_ref(resource->backing),
        .transfer = {.resource_id = cmd.resource_id, .level = cmd.level, .x = cmd.box.x, .y = cmd.box.y, .z = cmd.box.z,
                     .w = cmd.box.w, .h = cmd.box.h, .d = cmd.box.d, .stride = rows.row_bytes,
                     .layer_stride = (uint32_t)layer_stride, .len = layer_stride * rows.layers},
    };
    iso_order_route(plane, context, &request->work);
}

static void run_3d(struct iso_plane *plane, struct iso_request *request)
{
    struct iso_context *context = iso_idmap_get(&plane->contexts, request->hdr.ctx_id);
    if (!context)
        fail(plane, request, ISO_RESP_ERR_INVALID_CONTEXT_ID);
    else if (context->lane->lost)
        fail(plane, request, ISO_RESP_ERR_UNSPEC);
    else if (context->lane->backlog_count >= ISO_LANE_MAX_BACKLOG)
        fail(plane, request, ISO_RESP_ERR_OUT_OF_MEMORY);
    else if (plane->ring_idx && (request->hdr.flags & ISO_HDR_RING_IDX) && request->hdr.ring_idx > MAX_RING_IDX)
        fail(plane, request, ISO_RESP_ERR_INVALID_PARAMETER);
    else if (request->hdr.type == CMD_SUBMIT_3D)
        submit(plane, request, context);
    else
        transfer(plane, request, context);
}

bool iso_command_run(struct iso_plane *plane, struct iso_request *request)
{
    switch (request->hdr.type) {
    case CMD_TRANSFER_TO_HOST_2D:
        return iso_picture_transfer(plane, request);
    case CMD_RESOURCE_FLUSH:
        return iso_picture_flush(plane, request);
    case CMD_SET_SCANOUT:
        return iso_picture_flip(plane, request);
    default:
        run_3d(plane, request);
        return true;
    }
}
