/* What Python sees of native/src of the worker's engines; read by cffi, so without preprocessor. */

#define ISO_RING_MAGIC ...
#define ISO_RING_VERSION ...
#define ISO_RING_CMD_BYTES ...
#define ISO_RING_CPL_ENTRIES ...
#define ISO_RING_RECORD_ALIGN ...
#define ISO_RING_CMD_OFFSET ...
#define ISO_RING_CPL_OFFSET ...
#define ISO_RING_MAX_PAYLOAD ...
#define ISO_RING_TOTAL_BYTES ...
#define ISO_VIRGL_NAME_MAX ...
#define ISO_VIRGL_MAX_SHADER_BYTES ...
#define ISO_VIRGL_SPARE_TOKENS ...
#define ISO_VTEST_MAX_SUBMIT_BYTES ...

enum iso_record_type {
    ISO_RECORD_PAD, ISO_RECORD_SUBMIT, ISO_RECORD_TRANSFER_WRITE, ISO_RECORD_TRANSFER_READ, ISO_RECORD_FENCE,
    ISO_RECORD_COPY_OUT, ISO_RECORD_COPY_IN, ISO_RECORD_CONTROL, ...
};
enum iso_record_flags { ISO_FLAG_COMPLETE, ISO_FLAG_FENCE, ... };
enum iso_status {
    ISO_STATUS_OK, ISO_STATUS_FAILED, ISO_STATUS_INVALID_PARAMETER, ISO_STATUS_INVALID_RESOURCE,
    ISO_STATUS_OUT_OF_MEMORY, ISO_STATUS_LOST, ...
};
enum iso_wake { ISO_WAKE_CONTROL, ISO_WAKE_HANGUP, ISO_WAKE_BROKEN, ISO_WAKE_FAULT, ... };
enum iso_virgl_use { ISO_VIRGL_FOR_RING, ISO_VIRGL_FOR_VTEST, ... };
enum iso_vtest_wake {
    ISO_VTEST_NAMED, ISO_VTEST_FAULT, ISO_VTEST_LEFT, ISO_VTEST_REFUSED, ISO_VTEST_HUNG_UP, ISO_VTEST_SPOKEN, ...
};
enum iso_null_opcode {
    ISO_NULL_NOP, ISO_NULL_BUSY, ISO_NULL_ABORT, ISO_NULL_HANG, ISO_NULL_FAIL, ISO_NULL_DELAY,
    ISO_NULL_FILL, ISO_NULL_COPY, ISO_NULL_CHECK, ISO_NULL_BLOB, ...
};

struct iso_engine;
struct iso_consumer;

struct iso_wake_event {
    uint32_t reason;
    uint32_t flags;
    uint64_t seq;
    uint32_t ring_idx, ctx_id;
    uint32_t payload_len;
    const uint8_t *payload;
    uint64_t faults;
    char text[256];
};

enum iso_virgl_storage_kind { ISO_VIRGL_DMABUF, ISO_VIRGL_MEMFD, ... };

struct iso_virgl_storage {
    uint32_t kind, stride, fourcc;
    uint64_t nbytes, offset, modifier;
};

struct iso_virgl_usage;

struct iso_virgl_finding {
    bool asks_for_query;
    bool has_blobs;
    char text[128];
};

struct iso_consumer_statistics {
    uint64_t records, submits, transfers, copies, fences, completions, sleeps, doorbells;
};

struct iso_texture {
    uint32_t target, format, bind, width, height, depth, array_size, last_level, nr_samples, flags;
};

struct iso_virgl_resource {
    uint32_t resource_id;
    struct iso_texture v1;
};

struct iso_consumer *iso_consumer_new(int ring_fd, int staging_fd, int worker_doorbell, int master_doorbell, int channel_fd,
                                      struct iso_engine *engine);
void iso_consumer_free(struct iso_consumer *consumer);
uint32_t iso_consumer_run(struct iso_consumer *consumer, struct iso_wake_event *event);
int iso_consumer_finish(struct iso_consumer *consumer, uint32_t status);
int iso_consumer_drain(struct iso_consumer *consumer, int timeout_ms);
uint8_t *iso_consumer_staging(struct iso_consumer *consumer, uint64_t offset, uint64_t len);
void iso_consumer_statistics(struct iso_consumer *consumer, struct iso_consumer_statistics *statistics);

struct iso_null_storage {
    uint64_t nbytes, offset;
    uint32_t stride;
};

struct iso_null_objects;

struct iso_engine *iso_null_engine_new(void);
struct iso_null_objects *iso_null_engine_objects(struct iso_engine *engine);
uint32_t iso_null_engine_take_blob(struct iso_engine *engine, uint32_t ctx_id, uint64_t blob_id);
void iso_null_engine_forget_context(struct iso_engine *engine, uint32_t ctx_id);
void iso_null_engine_free(struct iso_engine *engine);
int iso_null_object_make(struct iso_null_objects *objects, uint32_t id, const struct iso_texture *texture);
int iso_null_object_import(struct iso_null_objects *objects, uint32_t id, const struct iso_texture *texture,
                           const struct iso_null_storage *storage, int fd, bool dmabuf);
int iso_null_object_mirror(struct iso_null_objects *objects, uint32_t id, uint64_t nbytes, int fd);
int iso_null_object_export(struct iso_null_objects *objects, uint32_t id, struct iso_null_storage *storage, int *fd);
void iso_null_object_drop(struct iso_null_objects *objects, uint32_t id);

struct iso_engine *iso_virgl_engine_init(void *egl_display, void *egl_config, bool gles, uint32_t use,
                                         uint32_t max_shader_bytes, char *error_text, size_t error_size);
void iso_virgl_started(void);
const void *iso_virgl_capset(uint32_t id, uint32_t *version, uint32_t *size);
int iso_virgl_context_create(uint32_t ctx_id, uint32_t capset_id, const char *name);
int iso_virgl_context_destroy(uint32_t ctx_id);
int iso_virgl_resource_attach(uint32_t ctx_id, const struct iso_virgl_resource *resource);
int iso_virgl_resource_import(uint32_t ctx_id, const struct iso_virgl_resource *resource,
                              const struct iso_virgl_storage *storage, int fd);
int iso_virgl_resource_mirror(uint32_t ctx_id, const struct iso_virgl_resource *resource, uint64_t nbytes, int fd);
int iso_virgl_resource_from_blob(uint32_t ctx_id, struct iso_virgl_resource *resource, uint64_t blob_id,
                                 struct iso_virgl_storage *storage, int fd);
int iso_virgl_resource_detach(uint32_t ctx_id, uint32_t resource_id);
int iso_virgl_resource_texture(uint32_t ctx_id, uint32_t resource_id, uint32_t *texture, struct iso_virgl_resource *resource);
void iso_virgl_set_images(int (*import)(int fd, struct iso_virgl_storage *storage, const struct iso_virgl_resource *resource,
                                        void **image, uint32_t *format),
                          void (*drop)(void *image));
extern "Python" int iso_python_import_image(int fd, struct iso_virgl_storage *storage,
                                            const struct iso_virgl_resource *resource, void **image, uint32_t *format);
extern "Python" void iso_python_drop_image(void *image);
uint32_t iso_virgl_version(void);
struct iso_virgl_usage *iso_virgl_usage_new(void);
void iso_virgl_usage_free(struct iso_virgl_usage *usage);
bool iso_virgl_watch(uint32_t resource_id, bool *written);
void iso_virgl_unwatch(uint32_t resource_id);
uint32_t iso_virgl_check(const uint32_t *stream, uint32_t words, uint32_t max_shader_bytes, struct iso_virgl_usage *usage,
                         struct iso_virgl_finding *finding);

void iso_virgl_log_set_prefix(const char *prefix);

struct iso_vtest_session;

struct iso_vtest_event {
    uint32_t reason;
    uint64_t faults;
    char text[256];
};

struct iso_vtest_statistics {
    uint64_t commands, submits, transfers, resources, waits, fences, receives, sends;
};

struct iso_vtest_session *iso_vtest_session_new(int client_fd, int channel_fd, struct iso_engine *engine);
void iso_vtest_session_free(struct iso_vtest_session *session);
uint32_t iso_vtest_session_run(struct iso_vtest_session *session, struct iso_vtest_event *event);
void iso_vtest_session_statistics(const struct iso_vtest_session *session, struct iso_vtest_statistics *statistics);
