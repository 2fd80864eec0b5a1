/* The VMM's end of a display socket, which takes all it gets and looks at nothing of it. */
#ifndef ISOREND_BENCH_DISPLAY_SINK_H
#define ISOREND_BENCH_DISPLAY_SINK_H

#include <sys/types.h>

/* Starts a process that reads `socket` until its end; it ends with the calling thread. Returns its id, or -1 with errno. */
pid_t bench_sink_start(int socket);

#endif
