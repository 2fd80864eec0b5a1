/* The inside of a vtest session, for vtest_session.c (its life), vtest_commands.c and vtest_commands3.c (what it does). */
#ifndef ISOREND_VTEST_STATE_H
#define ISOREND_VTEST_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "vtest_ops.h"
#include "vtest_protocol.h"
#include "vtest_resources.h"
#include "vtest_session.h"
#include "vtest_stream.h"
#include "vtest_syncs.h"

#define ISO_VTEST_NAME_BYTES 64 /* as much of a client's name as is kept */

enum iso_vtest_master { ISO_MASTER_THERE, ISO_MASTER_HUNG_UP, ISO_MASTER_SPOKE };

struct iso_vtest_session {
    struct iso_stream stream;
    struct iso_engine *engine;
    const struct iso_vtest_ops *ops;
    struct iso_vtest_resources resources;
    struct iso_syncs syncs;

    bool named, over;
    bool has_context;
    uint32_t capset_id; /* asked for by CONTEXT_INIT, or 0 */
    uint32_t protocol_version;
    char name[ISO_VTEST_NAME_BYTES];

    bool unflushed;  /* submitted, and the engine was not told to begin */
    bool unfinished; /* submitted, and nobody has seen it done */
    void *fence;     /* behind all that is unfinished, or NULL */

    uint64_t faults_told, fault_told_ns;
    struct iso_vtest_event end;
    struct iso_vtest_statistics statistics;

    int channel_fd, stop_fd;
    pthread_t watcher;
    bool watched;
    _Atomic int master; /* enum iso_vtest_master */
};

/* A command of `words` arguments; `context`: one is made first if there is none. */
struct iso_vtest_handler {
    bool (*run)(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length);
    uint8_t words;
    bool context;
};

/* NULL for a number that is no command, or none that may come after CREATE_RENDERER. */
const struct iso_vtest_handler *iso_vtest_handler(uint32_t number);

/*
 * Handlers return true, or false when the session is over; iso_vtest_refuse() says why and returns false. So does
 * iso_vtest_lost(), for a stream that has ended or, by errno, memory that has.
 */
bool iso_vtest_refuse(struct iso_vtest_session *session, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool iso_vtest_lost(struct iso_vtest_session *session);
bool iso_vtest_need_context(struct iso_vtest_session *session);
/* {count, number} and the words. */
bool iso_vtest_reply(struct iso_vtest_session *session, uint32_t number, const uint32_t *words, uint32_t count);
/* Have the engine execute a stream of `words` words. */
bool iso_vtest_submit(struct iso_vtest_session *session, const void *stream, uint32_t words);
/* Whether everything submitted is done, after at most timeout_ms. */
bool iso_vtest_idle(struct iso_vtest_session *session, uint32_t timeout_ms);
/* Sends a resource's descriptor after a reply, and makes the resource ready for use. */
bool iso_vtest_resource_give(struct iso_vtest_session *session, struct iso_vtest_resource *resource);

/* Of protocol version 3, in vtest_commands3.c. */
bool iso_vtest_get_param(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length);
bool iso_vtest_get_capset(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length);
bool iso_vtest_context_init(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length);
bool iso_vtest_create_blob(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length);
bool iso_vtest_sync_create(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length);
bool iso_vtest_sync_unref(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length);
bool iso_vtest_sync_read(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length);
bool iso_vtest_sync_write(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length);
bool iso_vtest_sync_wait(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length);
bool iso_vtest_submit_cmd2(struct iso_vtest_session *session, const uint32_t *arguments, uint32_t length);

#endif
