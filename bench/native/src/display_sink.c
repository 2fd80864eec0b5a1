#include "display_sink.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#define ROOM (256u * 1024)

pid_t bench_sink_start(int socket)
{
    static char nowhere[ROOM];
    pid_t parent = getpid(), pid = fork();
    if (pid)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() == parent)
        while (read(socket, nowhere, sizeof(nowhere)) > 0)
            ;
    _exit(0);
}
