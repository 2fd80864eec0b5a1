/*
 * One vtest client, served from its first byte to its last.
 *
 * Theory of operation. One thread, the caller's, reads commands and executes them in their order; it blocks in recv() when
 * there is nothing to do, and in the engine when the client asks to wait. Before it blocks, what was gathered of replies goes
 * out and the engine is told to begin with what is queued. No fence is made per submit: the client's waiting
 * (RESOURCE_BUSY_WAIT) is about everything submitted so far, so one fence is made when it asks and something was submitted
 * since, and the thread that has to wait is the one that waits. A second thread does nothing but watch the channel to the
 * master; when that hangs up it shuts the client's socket down, which ends whatever the first one blocks in.
 *
 * Everything the client sends is copied out of the socket and then checked. What it shares (resource memory) changes under
 * our hands and is never parsed here. Whoever breaks the protocol is told nothing and served no longer.
 *
 * Python is asked for what only it can do: run() returns for the client's name, for the engine's complaints and at the end.
 */
#ifndef ISOREND_VTEST_SESSION_H
#define ISOREND_VTEST_SESSION_H

#include <stdint.h>

#include "engine.h"

#define ISO_VTEST_TEXT 256
#define ISO_VTEST_MAX_NAME 4096u            /* bytes of CREATE_RENDERER */
#define ISO_VTEST_MAX_SUBMIT_BYTES (64u << 20)
#define ISO_VTEST_MAX_TRANSFER_BYTES (1u << 30) /* data of one TRANSFER_GET or TRANSFER_PUT in the stream */

enum iso_vtest_wake {
    ISO_VTEST_NAMED,   /* text: what the client calls itself; run() again */
    ISO_VTEST_FAULT,   /* text, faults: the engine's latest complaint and their number; run() again */
    ISO_VTEST_LEFT,    /* the client is gone */
    ISO_VTEST_REFUSED, /* text: what the client did that the protocol does not allow, or asked for in vain */
    ISO_VTEST_HUNG_UP, /* the master is gone */
    ISO_VTEST_SPOKEN,  /* the master said something, which it never may here */
};

struct iso_vtest_event {
    uint32_t reason;
    uint64_t faults;
    char text[ISO_VTEST_TEXT];
};

struct iso_vtest_statistics {
    uint64_t commands, submits, transfers, resources, waits, fences, receives, sends;
};

struct iso_vtest_session;

/*
 * The descriptors stay the caller's and must outlive the session. NULL with errno: ENOTSUP if the engine does not serve
 * vtest, or what memory, threads and sockets say.
 */
struct iso_vtest_session *iso_vtest_session_new(int client_fd, int channel_fd, struct iso_engine *engine);
void iso_vtest_session_free(struct iso_vtest_session *session);
/* Serves until Python has something to decide; after an end, the same end again. Returns event->reason. */
uint32_t iso_vtest_session_run(struct iso_vtest_session *session, struct iso_vtest_event *event);
void iso_vtest_session_statistics(const struct iso_vtest_session *session, struct iso_vtest_statistics *statistics);

#endif
