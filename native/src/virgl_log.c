#include "virgl_log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "virgl_api.h"

#define LINE_SIZE 512
#define BURST 10.0
#define PER_SECOND 5.0

static struct {
    pthread_mutex_t lock;
    char prefix[128];
    char error[LINE_SIZE];
    double tokens;
    struct timespec refilled;
    uint64_t left_out;
    bool quiet;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER, .tokens = BURST};

static bool take_token(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    state.tokens += PER_SECOND * ((double)(now.tv_sec - state.refilled.tv_sec) +
                                  (double)(now.tv_nsec - state.refilled.tv_nsec) * 1e-9);
    state.refilled = now;
    if (state.tokens > BURST)
        state.tokens = BURST;
    if (state.tokens < 1.0)
        return false;
    state.tokens -= 1.0;
    return true;
}

/* One write per line, so that lines of several processes do not mix. */
static void write_line(const char *text)
{
    char line[LINE_SIZE + sizeof(state.prefix) + 8];
    int length = snprintf(line, sizeof(line), "%s: virgl: %s\n", state.prefix, text);

    if (length > 0 && write(STDERR_FILENO, line, (size_t)length) < 0)
        return; /* nowhere to say that nobody can be told */
}

static void make_printable(char *text)
{
    size_t length = strlen(text);

    while (length && (text[length - 1] == '\n' || text[length - 1] == ' '))
        text[--length] = '\0';
    for (; *text; text++)
        if (*text < ' ' || *text > '~')
            *text = *text == '\n' || *text == '\t' ? ' ' : '?';
}

static void log_text(char *text)
{
    make_printable(text);
    if (!*text)
        return;
    pthread_mutex_lock(&state.lock);
    if (state.quiet || strstr(text, "context error reported"))
        snprintf(state.error, sizeof(state.error), "%s", text);
    if (state.quiet) {
        /* kept back */
    } else if (take_token()) {
        if (state.left_out) {
            char note[64];
            snprintf(note, sizeof(note), "(%llu lines left out)", (unsigned long long)state.left_out);
            state.left_out = 0;
            write_line(note);
        }
        write_line(text);
    } else {
        state.left_out++;
    }
    pthread_mutex_unlock(&state.lock);
}

void iso_virgl_log_set_prefix(const char *prefix)
{
    pthread_mutex_lock(&state.lock);
    snprintf(state.prefix, sizeof(state.prefix), "%s", prefix);
    pthread_mutex_unlock(&state.lock);
}

void iso_virgl_log_set_quiet(bool quiet)
{
    pthread_mutex_lock(&state.lock);
    state.quiet = quiet;
    pthread_mutex_unlock(&state.lock);
}

bool iso_virgl_log_take_error(char *text, size_t size)
{
    bool any;

    pthread_mutex_lock(&state.lock);
    any = state.error[0] != '\0';
    if (any)
        snprintf(text, size, "%s", state.error);
    state.error[0] = '\0';
    pthread_mutex_unlock(&state.lock);
    return any;
}

#if ISO_VIRGL_VERSION >= 10100
static void log_message(enum virgl_log_level_flags level, const char *message, void *user_data)
{
    char line[LINE_SIZE];

    (void)user_data;
    if (level < VIRGL_LOG_LEVEL_WARNING)
        return;
    snprintf(line, sizeof(line), "%s", message);
    log_text(line);
}

void iso_virgl_log_install(void)
{
    virgl_set_log_callback(log_message, NULL, NULL);
}
#else
static void log_format(const char *format, va_list arguments)
{
    char line[LINE_SIZE];

    vsnprintf(line, sizeof(line), format, arguments);
    log_text(line);
}

void iso_virgl_log_install(void)
{
    virgl_set_debug_callback(log_format);
}
#endif
