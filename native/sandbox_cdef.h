/* What Python sees of native/src/syscall_filter.h. */

#define ISO_FILTER_CONDITIONS 6

struct iso_condition {
    uint32_t argument;
    uint64_t mask;
    uint64_t value;
};

struct iso_rule {
    const char *name;
    int32_t error;
    uint32_t count;
    struct iso_condition conditions[6];
};

struct iso_notice {
    uint64_t id;
    uint32_t pid;
    int32_t number;
    uint64_t arguments[6];
};

enum iso_received {
    ISO_RECEIVED_NOTICE,
    ISO_RECEIVED_NOTHING,
    ISO_RECEIVED_END,
    ...
};

int iso_filter_load(const struct iso_rule *rules, size_t count, size_t *failed);
int iso_filter_forbid(const struct iso_rule *rules, size_t count, size_t *failed);
int iso_filter_is_listener(int fd);
int iso_filter_receive(int fd, struct iso_notice *notice);
int iso_filter_continue(int fd, uint64_t id);
int iso_filter_name(int number, char *name, size_t size);
int iso_filter_number(const char *machine, const char *name);
int iso_install_abort_handler(int code);
