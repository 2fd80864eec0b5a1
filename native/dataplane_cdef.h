/* What Python sees of the data plane. The meaning of each declaration stands in native/src/{plane,lane,backing,...}.h. */

#define ISO_RING_TOTAL_BYTES ...
#define ISO_RING_MAX_PAYLOAD ...
#define ISO_VQ_MAX_NUM ...
#define ISO_MIRROR_HEADER_BYTES ...
#define ISO_BACKING_MAX_ENTRIES ...
#define ISO_FLAG_COMPLETE ...
#define ISO_FLAG_FENCE ...
#define ISO_STATUS_OK ...
#define ISO_STATUS_FAILED ...
#define ISO_STATUS_INVALID_PARAMETER ...
#define ISO_STATUS_INVALID_RESOURCE ...
#define ISO_STATUS_OUT_OF_MEMORY ...
#define ISO_STATUS_LOST ...
#define ISO_EVENT_NONE ...
#define ISO_EVENT_COMMAND ...
#define ISO_EVENT_WORK_DONE ...
#define ISO_EVENT_LANE_BROKEN ...
#define ISO_EVENT_QUEUE_BROKEN ...
#define ISO_EVENT_FLIPPED ...
#define ISO_EVENT_LIMIT ...
#define ISO_LIMIT_SUBMIT ...
#define ISO_LIMIT_TRANSFER ...
#define ISO_WORK_SUBMIT ...
#define ISO_WORK_TRANSFER_WRITE ...
#define ISO_WORK_TRANSFER_READ ...
#define ISO_WORK_CONTROL ...
#define ISO_WORK_READBACK ...
#define ISO_WORK_POINT ...
#define ISO_WORK_COPY_OUT ...
#define ISO_WORK_COPY_IN ...
#define ISO_PLACED_UNKNOWN ...

struct iso_guestmem;
struct iso_guestmem *iso_guestmem_new(void);
struct iso_guestmem *iso_guestmem_ref(struct iso_guestmem *mem);
void iso_guestmem_unref(struct iso_guestmem *mem);
int iso_guestmem_add(struct iso_guestmem *mem, int fd, uint64_t gpa, uint64_t size, uint64_t uva, uint64_t offset);
bool iso_guestmem_contains(const struct iso_guestmem *mem, uint64_t gpa, uint64_t len);
bool iso_guestmem_read(const struct iso_guestmem *mem, uint64_t gpa, void *to, size_t len);
bool iso_guestmem_write(const struct iso_guestmem *mem, uint64_t gpa, const void *from, size_t len);

struct iso_backing;
int iso_backing_new(const struct iso_guestmem *mem, const void *entries, uint32_t count, struct iso_backing **out);
void iso_backing_unref(struct iso_backing *backing);
uint64_t iso_backing_bytes(const struct iso_backing *backing);
uint32_t iso_backing_pieces(const struct iso_backing *backing);
struct iso_segment {
    uint64_t gpa, len;
};
uint32_t iso_backing_segments(const struct iso_backing *backing, struct iso_segment *out, uint32_t capacity);
struct iso_rows {
    uint64_t offset, stride, layer_stride;
    uint32_t row_bytes, rows, layers;
};
bool iso_backing_read_rows(const struct iso_guestmem *mem, const struct iso_backing *backing, const struct iso_rows *at,
                           uint8_t *ours, uint64_t our_stride, uint64_t our_layer_stride);
bool iso_backing_write_rows(const struct iso_guestmem *mem, const struct iso_backing *backing, const struct iso_rows *at,
                            const uint8_t *ours, uint64_t our_stride, uint64_t our_layer_stride);

struct iso_texture {
    uint32_t target, format, bind, width, height, depth, array_size, last_level, nr_samples, flags;
};
struct iso_box {
    uint32_t x, y, z, w, h, d;
};
bool iso_texture_valid(const struct iso_texture *texture);
uint64_t iso_texture_bytes(const struct iso_texture *texture);
struct iso_mirror_header;
struct iso_mirror_level {
    uint64_t offset;
    uint32_t width, height, depth;
    uint64_t stride, layer_stride;
};
uint64_t iso_mirror_bytes(const struct iso_texture *texture);
bool iso_mirror_level(const struct iso_texture *texture, uint32_t level, struct iso_mirror_level *out);
bool iso_pixels_known(uint32_t format);
bool iso_pixels_to_xrgb(uint32_t format, const uint8_t *from, uint64_t from_stride, uint8_t *to, uint64_t to_stride,
                        uint32_t width, uint32_t height);

struct iso_lane {
    uint8_t *staging;
    uint64_t staging_bytes;
    ...;
};
struct iso_lane *iso_lane_new(uint32_t id, int ring_fd, int staging_fd, uint64_t staging_bytes, int doorbell_out, int doorbell_in);

struct iso_rect {
    uint32_t x, y, width, height;
};
struct iso_event {
    uint32_t kind, queue, lane, status, scanout, resource;
    struct iso_rect part;
    uint64_t request, token, staging_offset, len;
};
struct iso_plane_stats {
    uint64_t commands, handed, responses, errors, malformed, calls, kicks;
};
struct iso_lane_progress {
    uint64_t waiting, oldest, begun, consumed, completed, backlog, submits, submit_bytes, transfers, transfer_bytes;
    bool blocked;
};
struct iso_placed {
    uint64_t seq, end, bytes;
    uint32_t kind, ctx_id, resource_id, message;
};
struct iso_lane_history {
    struct iso_placed latest[8];
    uint32_t count;
    struct iso_placed under_way;
    uint64_t retired;
};

struct iso_plane;
struct iso_plane *iso_plane_new(void);
int iso_plane_start(struct iso_plane *plane);
void iso_plane_free(struct iso_plane *plane);
int iso_plane_event_fd(const struct iso_plane *plane);
int iso_plane_set_memory(struct iso_plane *plane, struct iso_guestmem *mem);
int iso_plane_queue_setup(struct iso_plane *plane, uint32_t queue, uint32_t num, uint64_t desc_uva, uint64_t avail_uva,
                          uint64_t used_uva, uint16_t base, bool event_idx);
int iso_plane_queue_call(struct iso_plane *plane, uint32_t queue, int fd);
int iso_plane_queue_err(struct iso_plane *plane, uint32_t queue, int fd);
int iso_plane_queue_start(struct iso_plane *plane, uint32_t queue, int kick_fd);
int iso_plane_queue_enable(struct iso_plane *plane, uint32_t queue, bool enable);
uint16_t iso_plane_queue_stop(struct iso_plane *plane, uint32_t queue);
uint32_t iso_plane_queue_open(struct iso_plane *plane, uint32_t queue);
void iso_plane_queue_abandon(struct iso_plane *plane, uint32_t queue);
void iso_plane_set_ring_idx(struct iso_plane *plane, bool enabled);
int iso_plane_take(struct iso_plane *plane, struct iso_event *event, uint8_t *buffer, uint64_t capacity);
int iso_plane_complete(struct iso_plane *plane, uint64_t request, uint32_t type, const uint8_t *payload, uint32_t len);
void iso_plane_flush(struct iso_plane *plane);
int iso_plane_lane_add(struct iso_plane *plane, struct iso_lane *lane);
int iso_plane_lane_bind(struct iso_plane *plane, struct iso_lane *lane, uint32_t ctx_id);
void iso_plane_context_forget(struct iso_plane *plane, uint32_t ctx_id);
void iso_plane_lane_lost(struct iso_plane *plane, struct iso_lane *lane);
void iso_plane_lane_free(struct iso_plane *plane, struct iso_lane *lane);
int iso_plane_lane_send(struct iso_plane *plane, struct iso_lane *lane, uint32_t ctx_id, uint32_t flags, uint64_t token,
                        const uint8_t *bytes, uint32_t len);
int iso_plane_lane_readback(struct iso_plane *plane, struct iso_lane *lane, uint32_t ctx_id, uint64_t token,
                            uint32_t resource_id, const struct iso_texture *texture, const struct iso_box *box);
void iso_plane_lane_release(struct iso_plane *plane, struct iso_lane *lane, uint64_t token);
void iso_plane_lane_progress(struct iso_plane *plane, struct iso_lane *lane, struct iso_lane_progress *out);
void iso_plane_lane_history(struct iso_plane *plane, struct iso_lane *lane, struct iso_lane_history *out);
bool iso_plane_lane_trim(struct iso_plane *plane, struct iso_lane *lane);
int iso_plane_lane_reserve(struct iso_plane *plane, struct iso_lane *lane, uint32_t ctx_id, uint64_t slot);
int iso_plane_lane_fill(struct iso_plane *plane, struct iso_lane *lane, uint64_t slot, uint32_t flags, uint64_t token,
                        const uint8_t *bytes, uint32_t len);
int iso_plane_resource_mirror(struct iso_plane *plane, uint32_t resource_id, uint32_t owner, struct iso_mirror_header *header);
void iso_plane_resource_unmirror(struct iso_plane *plane, uint32_t resource_id);
void iso_plane_resource_written(struct iso_plane *plane, uint32_t resource_id);
int iso_plane_resource_sync(struct iso_plane *plane, uint32_t resource_id, uint64_t token);
int iso_plane_resource_guest_memory(struct iso_plane *plane, uint32_t resource_id);
int iso_plane_resource_set(struct iso_plane *plane, uint32_t resource_id, const struct iso_texture *texture);
int iso_plane_resource_backing(struct iso_plane *plane, uint32_t resource_id, struct iso_backing *backing);
int iso_plane_resource_attach(struct iso_plane *plane, uint32_t resource_id, uint32_t ctx_id);
void iso_plane_resource_detach(struct iso_plane *plane, uint32_t resource_id, uint32_t ctx_id);
int iso_plane_resource_picture(struct iso_plane *plane, uint32_t resource_id, uint32_t width, uint32_t height, uint8_t *pixels);
void iso_plane_scanout_show(struct iso_plane *plane, uint32_t scanout, uint32_t resource_id, const struct iso_rect *part);
bool iso_plane_scanout_damage(struct iso_plane *plane, uint32_t scanout, struct iso_rect *damage);
void iso_plane_resource_remove(struct iso_plane *plane, uint32_t resource_id);
void iso_plane_get_stats(struct iso_plane *plane, struct iso_plane_stats *out);
