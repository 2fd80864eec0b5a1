/*
 * A client's socket: bytes in, bytes and descriptors out.
 *
 * Input goes through one buffer, so that one recv() takes as many commands as there are, and a payload that fits is used
 * where it lies. Larger payloads are received into a buffer of their own, which grows as the largest needs and is kept, unless
 * it is very large, until iso_stream_trim().
 * Output is gathered until iso_stream_flush().
 *
 * The socket blocks. Whoever wants a blocked stream back shuts the socket down.
 */
#ifndef ISOREND_VTEST_STREAM_H
#define ISOREND_VTEST_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ISO_STREAM_INPUT_BYTES (512u << 10)
#define ISO_STREAM_OUTPUT_BYTES (16u << 10)
#define ISO_STREAM_KEPT_BYTES (64u << 20) /* of the buffer for large payloads, while the client sends nothing */

struct iso_stream {
    int fd;
    bool ended; /* the other side is gone, nothing more will come or go */
    uint8_t *input;
    size_t head, tail;
    uint8_t *payload;
    size_t payload_bytes;
    uint8_t output[ISO_STREAM_OUTPUT_BYTES];
    size_t gathered;
    uint64_t receives, sends; /* system calls so far */
};

/* The descriptor stays the caller's. Returns 0 or -1 with errno. */
int iso_stream_open(struct iso_stream *stream, int fd);
void iso_stream_close(struct iso_stream *stream);

/* Bytes that are there already. */
size_t iso_stream_buffered(const struct iso_stream *stream);
/* Takes what has arrived without waiting; false at the end of the stream. */
bool iso_stream_receive_nowait(struct iso_stream *stream);
/*
 * The next `bytes` bytes, 4-byte aligned, waiting for them, without taking them: at most ISO_STREAM_INPUT_BYTES. NULL at the
 * end of the stream. Valid until the next call for this stream's input.
 */
const uint8_t *iso_stream_peek(struct iso_stream *stream, size_t bytes);
void iso_stream_take(struct iso_stream *stream, size_t bytes);
/* The next `bytes` bytes, 4-byte aligned, of any number, taken. NULL at the end of the stream or (errno ENOMEM) of memory. */
const uint8_t *iso_stream_payload(struct iso_stream *stream, size_t bytes);
/* Memory of at least that size for a payload on its way out; the same memory as iso_stream_payload()'s. NULL: none to be had. */
uint8_t *iso_stream_scratch(struct iso_stream *stream, size_t bytes);
/* Nothing is to be done now: gives back a payload buffer of more than ISO_STREAM_KEPT_BYTES. */
void iso_stream_trim(struct iso_stream *stream);

/* False when the other side is gone. */
bool iso_stream_put(struct iso_stream *stream, const void *data, size_t bytes);
bool iso_stream_flush(struct iso_stream *stream);
/* What was gathered, then a byte with a descriptor, which stays the caller's. */
bool iso_stream_put_fd(struct iso_stream *stream, int fd);

#endif
