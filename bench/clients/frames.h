/* When frames are due, how long each took, and the figures made of that. All times are CLOCK_MONOTONIC in nanoseconds. */
#ifndef BENCH_FRAMES_H
#define BENCH_FRAMES_H

#include <stddef.h>
#include <stdint.h>

struct frames {
    int64_t period;     /* between two frames of a paced program, 0 for as fast as it goes */
    int64_t started;    /* when the first frame was due */
    int64_t due;        /* when the frame that is being drawn was due */
    int64_t finished;   /* when the last one was done */
    int64_t *durations; /* of each frame, from due to done */
    size_t count, capacity;
    size_t missed;      /* frames of a paced program that were left out, since an earlier one took so long */
};

/* `pace` in frames a second, 0 for as fast as it goes. The first frame is due now. */
void frames_start(struct frames *frames, double pace);

/* Waits until the next frame is due. A paced program that comes late waits for the next due time, as with a display. */
void frames_wait(struct frames *frames);

/* Notes that the frame is done. */
void frames_done(struct frames *frames);

/* The q-quantile (nearest rank, 0 < q <= 1) of the durations in microseconds; 0 if there are none. Sorts them. */
double frames_quantile_us(struct frames *frames, double q);

#endif
