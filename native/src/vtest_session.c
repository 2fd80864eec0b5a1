#include "vtest_session.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "vtest_state.h"

#define FAULT_INTERVAL_NS 200000000ull
enum { PENDING_SLICE_MS = 1 }; /* how long a command can wait behind a fence that a client waits for elsewhere */

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Ends. */

static void end(struct iso_vtest_session *session, enum iso_vtest_wake reason)
{
    session->over = true;
    session->end.reason = reason;
}

bool iso_vtest_refuse(struct iso_vtest_session *session, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(session->end.text, sizeof(session->end.text), format, arguments);
    va_end(arguments);
    end(session, ISO_VTEST_REFUSED);
    return false;
}

bool iso_vtest_lost(struct iso_vtest_session *session)
{
    if (!session->stream.ended)
        return iso_vtest_refuse(session, "out of memory");
    switch (atomic_load(&session->master)) {
    case ISO_MASTER_HUNG_UP:
        end(session, ISO_VTEST_HUNG_UP);
        break;
    case ISO_MASTER_SPOKE:
        end(session, ISO_VTEST_SPOKEN);
        break;
    default:
        end(session, ISO_VTEST_LEFT);
    }
    return false;
}

/* What several commands do. */

bool iso_vtest_need_context(struct iso_vtest_session *session)
{
    int error;

    if (session->has_context)
        return true;
    error = session->ops->context_create(session->engine, session->capset_id, session->name);
    if (error)
        return iso_vtest_refuse(session, "no context of capability set %u: %s", session->capset_id, strerror(error));
    session->has_context = true;
    return true;
}

bool iso_vtest_reply(struct iso_vtest_session *session, uint32_t number, const uint32_t *words, uint32_t count)
{
    const uint32_t header[] = {count, number};

    if (iso_stream_put(&session->stream, header, sizeof(header)) &&
        iso_stream_put(&session->stream, words, count * sizeof(*words)))
        return true;
    return iso_vtest_lost(session);
}

static void drop_fence(struct iso_vtest_session *session)
{
    if (session->fence)
        session->ops->fence_drop(session->engine, session->fence);
    session->fence = NULL;
}

bool iso_vtest_submit(struct iso_vtest_session *session, const void *stream, uint32_t words)
{
    int error;

    drop_fence(session); /* it does not cover what comes now */
    session->statistics.submits++;
    error = session->ops->submit(session->engine, stream, words);
    if (error)
        return iso_vtest_refuse(session, "a command stream of %u words: %s", words,
                                session->engine->faults > session->faults_told ? session->engine->fault_text : strerror(error));
    session->unflushed = session->unfinished = true;
    return true;
}

bool iso_vtest_idle(struct iso_vtest_session *session, uint32_t timeout_ms)
{
    if (!session->unfinished)
        return true;
    if (!session->fence) {
        session->fence = session->ops->fence(session->engine);
        session->statistics.fences++;
    }
    if (session->fence && !session->ops->fence_wait(session->engine, session->fence, timeout_ms))
        return false;
    drop_fence(session);
    session->unfinished = session->unflushed = false;
    return true;
}

/* The master's end. */

static void *watch_master(void *argument)
{
    struct iso_vtest_session *session = argument;
    struct pollfd fds[] = {
        {.fd = session->channel_fd, .events = POLLIN | POLLRDHUP},
        {.fd = session->stop_fd, .events = POLLIN},
    };

    while (poll(fds, 2, -1) < 0)
        if (errno != EINTR)
            break;
    if (fds[1].revents)
        return NULL;
    bool hung_up = fds[0].revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL);
    atomic_store(&session->master, hung_up ? ISO_MASTER_HUNG_UP : ISO_MASTER_SPOKE);
    shutdown(session->stream.fd, SHUT_RDWR);
    return NULL;
}

static int start_watcher(struct iso_vtest_session *session)
{
    session->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (session->stop_fd < 0)
        return errno;
    int error = pthread_create(&session->watcher, NULL, watch_master, session);
    session->watched = !error;
    return error;
}

static void stop_watcher(struct iso_vtest_session *session)
{
    if (session->watched) {
        eventfd_write(session->stop_fd, 1);
        pthread_join(session->watcher, NULL);
    }
    if (session->stop_fd >= 0)
        close(session->stop_fd);
}

/* The loop. */

static bool is_named(struct iso_vtest_session *session, const uint32_t *header, struct iso_vtest_event *event)
{
    if (header[1] != ISO_VTEST_CREATE_RENDERER)
        return iso_vtest_refuse(session, "the first command is %u, not CREATE_RENDERER", header[1]);
    if (header[0] > ISO_VTEST_MAX_NAME)
        return iso_vtest_refuse(session, "a name of %u bytes", header[0]);
    const uint8_t *name = iso_stream_payload(&session->stream, header[0]);
    if (!name)
        return iso_vtest_lost(session);
    size_t length = strnlen((const char *)name, header[0]);
    snprintf(session->name, sizeof(session->name), "%.*s", (int)length, (const char *)name);
    session->named = true;
    *event = (struct iso_vtest_event){.reason = ISO_VTEST_NAMED};
    snprintf(event->text, sizeof(event->text), "%s", session->name);
    return true;
}

static bool execute(struct iso_vtest_session *session, const uint32_t *header)
{
    const struct iso_vtest_handler *handler = iso_vtest_handler(header[1]);
    uint32_t arguments[ISO_VTEST_MAX_ARGUMENTS];

    if (!handler)
        return iso_vtest_refuse(session, "unknown command %u", header[1]);
    size_t bytes = handler->words * sizeof(arguments[0]);
    const uint8_t *found = iso_stream_payload(&session->stream, bytes);
    if (!found)
        return iso_vtest_lost(session);
    memcpy(arguments, found, bytes);
    if (handler->context && !iso_vtest_need_context(session))
        return false;
    return handler->run(session, arguments, header[0]);
}

static bool fault_is_due(struct iso_vtest_session *session, struct iso_vtest_event *event)
{
    struct iso_engine *engine = session->engine;

    if (engine->faults == session->faults_told)
        return false;
    uint64_t now = now_ns();
    if (session->fault_told_ns && now - session->fault_told_ns < FAULT_INTERVAL_NS)
        return false;
    *event = (struct iso_vtest_event){.reason = ISO_VTEST_FAULT, .faults = engine->faults - session->faults_told};
    snprintf(event->text, sizeof(event->text), "%s", engine->fault_text);
    session->faults_told = engine->faults;
    session->fault_told_ns = now;
    return true;
}

/* Signal the syncs of batches that are done, until there are none or the client sends something. */
static bool follow_pending(struct iso_vtest_session *session)
{
    void *fence;

    while ((fence = iso_sync_oldest(&session->syncs))) {
        if (session->ops->fence_wait(session->engine, fence, PENDING_SLICE_MS)) {
            session->ops->fence_drop(session->engine, fence);
            iso_sync_passed(&session->syncs);
        }
        if (!iso_stream_receive_nowait(&session->stream))
            return iso_vtest_lost(session);
        if (iso_stream_buffered(&session->stream))
            break;
    }
    return true;
}

/*
 * Nothing is left to read: let go of what was held back before waiting for more. The engine is told to begin only when the
 * client has not said more meanwhile, which is mostly that it wants to wait: two flushes cost more than one.
 */
static bool prepare_to_wait(struct iso_vtest_session *session)
{
    if (!iso_stream_flush(&session->stream))
        return iso_vtest_lost(session);
    iso_stream_trim(&session->stream);
    if (session->unflushed) {
        if (!iso_stream_receive_nowait(&session->stream))
            return iso_vtest_lost(session);
        if (iso_stream_buffered(&session->stream) >= ISO_VTEST_HEADER_BYTES)
            return true;
        session->ops->flush(session->engine);
        session->unflushed = false;
    }
    return follow_pending(session);
}

/* One command, or the end. True: go on; false: event is filled. */
static bool step(struct iso_vtest_session *session, struct iso_vtest_event *event)
{
    uint32_t header[2];

    if (iso_stream_buffered(&session->stream) < sizeof(header)) {
        if (!prepare_to_wait(session))
            return false;
        if (fault_is_due(session, event))
            return false;
    }
    const uint8_t *found = iso_stream_peek(&session->stream, sizeof(header));
    if (!found)
        return iso_vtest_lost(session);
    memcpy(header, found, sizeof(header));
    iso_stream_take(&session->stream, sizeof(header));
    session->statistics.commands++;
    if (!session->named) {
        is_named(session, header, event);
        return false;
    }
    return execute(session, header);
}

uint32_t iso_vtest_session_run(struct iso_vtest_session *session, struct iso_vtest_event *event)
{
    while (!session->over && step(session, event))
        ;
    if (session->over)
        *event = session->end;
    return event->reason;
}

/* Life. */

struct iso_vtest_session *iso_vtest_session_new(int client_fd, int channel_fd, struct iso_engine *engine)
{
    struct iso_vtest_session *session;
    int error = 0;

    if (!engine->ops->vtest) {
        errno = ENOTSUP;
        return NULL;
    }
    session = calloc(1, sizeof(*session));
    if (!session)
        return NULL;
    session->engine = engine;
    session->ops = engine->ops->vtest;
    session->faults_told = engine->faults;
    session->channel_fd = channel_fd;
    session->stop_fd = -1;
    if (iso_stream_open(&session->stream, client_fd))
        error = errno;
    else
        error = start_watcher(session);
    if (!error)
        return session;
    iso_vtest_session_free(session);
    errno = error;
    return NULL;
}

void iso_vtest_session_free(struct iso_vtest_session *session)
{
    void *fence;

    if (!session)
        return;
    stop_watcher(session);
    drop_fence(session);
    while ((fence = iso_sync_oldest(&session->syncs))) {
        session->ops->fence_drop(session->engine, fence);
        iso_sync_passed(&session->syncs);
    }
    for (uint32_t i = 0; i < session->resources.map.capacity; i++)
        if (session->resources.map.slots[i].id)
            session->ops->resource_drop(session->engine, session->resources.map.slots[i].id);
    iso_vtest_resources_release(&session->resources);
    iso_syncs_release(&session->syncs);
    iso_stream_close(&session->stream);
    free(session);
}

void iso_vtest_session_statistics(const struct iso_vtest_session *session, struct iso_vtest_statistics *statistics)
{
    *statistics = session->statistics;
    statistics->receives = session->stream.receives;
    statistics->sends = session->stream.sends;
}
