/*
 * virglrenderer's messages, line by line to stderr behind the worker's name.
 *
 * A guest decides how many there are, so they are limited: a burst, then a few per second, and the number of those left out.
 */
#ifndef ISOREND_VIRGL_LOG_H
#define ISOREND_VIRGL_LOG_H

#include <stdbool.h>
#include <stddef.h>

/* Begin each line with this from now on. */
void iso_virgl_log_set_prefix(const char *prefix);

/* Have virglrenderer log through this module. */
void iso_virgl_log_install(void);

/* Keep lines back, of which the latest is remembered as an error; for a start-up whose chatter is only wanted if it fails. */
void iso_virgl_log_set_quiet(bool quiet);

/* Copy the latest line that reports a context error and forget it; false if there is none. */
bool iso_virgl_log_take_error(char *text, size_t size);

#endif
