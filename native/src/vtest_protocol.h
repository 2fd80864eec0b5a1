/*
 * The vtest protocol, versions 0 to 3, as Mesa's virgl and Venus drivers speak it: numbers and shapes.
 *
 * A command is two little-endian 32-bit words, {length, number}, and its arguments. The length counts words, and is not to
 * be relied on: CREATE_RENDERER's counts bytes, and TRANSFER_PUT2's counts data that travels in shared memory. A reply has
 * the same two words before it, except the data of TRANSFER_GET, which has none. A descriptor travels with one byte of its
 * own, behind the reply it belongs to.
 *
 * Sources: virglrenderer's vtest/vtest_protocol.h and Mesa's src/virtio/vtest/vtest_protocol.h.
 */
#ifndef ISOREND_VTEST_PROTOCOL_H
#define ISOREND_VTEST_PROTOCOL_H

#include <stdint.h>

#define ISO_VTEST_VERSION 3

enum iso_vtest_command {
    ISO_VTEST_GET_CAPS = 1,
    ISO_VTEST_RESOURCE_CREATE = 2,
    ISO_VTEST_RESOURCE_UNREF = 3,
    ISO_VTEST_TRANSFER_GET = 4,
    ISO_VTEST_TRANSFER_PUT = 5,
    ISO_VTEST_SUBMIT_CMD = 6,
    ISO_VTEST_RESOURCE_BUSY_WAIT = 7,
    ISO_VTEST_CREATE_RENDERER = 8,
    ISO_VTEST_GET_CAPS2 = 9,
    ISO_VTEST_PING_PROTOCOL_VERSION = 10,
    ISO_VTEST_PROTOCOL_VERSION = 11,
    /* since version 2 */
    ISO_VTEST_RESOURCE_CREATE2 = 12,
    ISO_VTEST_TRANSFER_GET2 = 13,
    ISO_VTEST_TRANSFER_PUT2 = 14,
    /* since version 3 */
    ISO_VTEST_GET_PARAM = 15,
    ISO_VTEST_GET_CAPSET = 16,
    ISO_VTEST_CONTEXT_INIT = 17,
    ISO_VTEST_RESOURCE_CREATE_BLOB = 18,
    ISO_VTEST_SYNC_CREATE = 19,
    ISO_VTEST_SYNC_UNREF = 20,
    ISO_VTEST_SYNC_READ = 21,
    ISO_VTEST_SYNC_WRITE = 22,
    ISO_VTEST_SYNC_WAIT = 23,
    ISO_VTEST_SUBMIT_CMD2 = 24,
};

enum { ISO_VTEST_HEADER_BYTES = 8, ISO_VTEST_MAX_ARGUMENTS = 11 };
enum { ISO_VTEST_BUSY_WAIT_FLAG_WAIT = 1 };
enum { ISO_VTEST_PARAM_MAX_TIMELINE_COUNT = 1, ISO_VTEST_TIMELINE_COUNT = 64 };
enum { ISO_VTEST_BLOB_GUEST = 1, ISO_VTEST_BLOB_HOST3D = 2, ISO_VTEST_BLOB_HOST3D_GUEST = 3 };
enum { ISO_VTEST_SYNC_WAIT_FLAG_ANY = 1, ISO_VTEST_SYNC_WORDS = 3 };
enum { ISO_VTEST_BATCH_FLAG_TIMELINE = 1, ISO_VTEST_BATCH_STRIDE = 8 };

/* One of SUBMIT_CMD2's batches, as far as it has a meaning; offsets and sizes are in words of the command's arguments. */
struct iso_vtest_batch {
    uint32_t flags;
    uint32_t cmd_offset, cmd_size;
    uint32_t sync_offset, sync_count; /* sync_count times {id, value low, value high} */
    uint32_t timeline;                /* with ISO_VTEST_BATCH_FLAG_TIMELINE: the syncs are signalled when the work is done */
};

#endif
