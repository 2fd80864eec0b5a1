#include "frames.h"

#include "gl.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>

#define SECOND INT64_C(1000000000)

void frames_start(struct frames *frames, double pace)
{
    *frames = (struct frames){.period = pace > 0 ? (int64_t)((double)SECOND / pace) : 0};
    frames->started = frames->due = frames->finished = now_ns();
}

static void sleep_until(int64_t when)
{
    struct timespec until = {when / SECOND, when % SECOND};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0)
        continue; /* a signal */
}

void frames_wait(struct frames *frames)
{
    int64_t now = now_ns(), late;

    if (!frames->count || !frames->period) {
        frames->due = now;
        return;
    }
    frames->due += frames->period;
    late = now - frames->due;
    if (late > 0) {
        int64_t skipped = (late + frames->period - 1) / frames->period;

        frames->missed += (size_t)skipped;
        frames->due += skipped * frames->period;
    }
    sleep_until(frames->due);
}

void frames_done(struct frames *frames)
{
    if (frames->count == frames->capacity) {
        frames->capacity = frames->capacity ? 2 * frames->capacity : 4096;
        frames->durations = realloc(frames->durations, frames->capacity * sizeof *frames->durations);
        if (!frames->durations)
            die(1, "no memory for %zu frame times", frames->capacity);
    }
    frames->finished = now_ns();
    frames->durations[frames->count++] = frames->finished - frames->due;
}

static int compare_durations(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

double frames_quantile_us(struct frames *frames, double q)
{
    size_t rank;

    if (!frames->count)
        return 0;
    qsort(frames->durations, frames->count, sizeof *frames->durations, compare_durations);
    rank = (size_t)ceil(q * (double)frames->count);
    return (double)frames->durations[(rank ? rank : 1) - 1] / 1000.0;
}
