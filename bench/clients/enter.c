/*
 * isorend-bench-enter DIRECTORY PROGRAM [ARGUMENT...]: runs a program that sees DIRECTORY as /tmp.
 *
 * The vtest clients of Mesa before 23.1 know one socket, /tmp/.virgl_test, and so does Debian 12's virgl_test_server. In a
 * mount namespace of its own each server has a /tmp to itself, and several live side by side. The working directory stays,
 * even below the other /tmp. The program is killed when whoever started it ends, and has the time of its start in
 * ISOREND_BENCH_STARTED_NS (see client.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static _Noreturn void fail(int code, const char *what)
{
    fprintf(stderr, "isorend-bench-enter: %s: %s\n", what, strerror(errno));
    exit(code);
}

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || close(fd) < 0)
        fail(1, path);
}

/* user_namespaces(7): who is not root may mount in a user namespace of their own, where they stay who they are. */
static void become_able_to_mount(void)
{
    unsigned user = geteuid(), group = getegid();
    char map[64];

    if (user == 0)
        return;
    if (unshare(CLONE_NEWUSER) < 0)
        fail(1, "no user namespace to be had, and this is not root");
    write_file("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "%u %u 1", user, user);
    write_file("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "%u %u 1", group, group);
    write_file("/proc/self/gid_map", map);
}

static void note_start(void)
{
    struct timespec now;
    char text[32];

    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(text, sizeof text, "%lld", now.tv_sec * 1000000000LL + now.tv_nsec);
    if (setenv("ISOREND_BENCH_STARTED_NS", text, 1) < 0)
        fail(1, "setenv");
}

/*
 * The path by which `program` will still be found: DIRECTORY may hide it. A name without a slash is looked for in PATH.
 * The program keeps its name that way, which a descriptor of the file itself would not (execveat(2)).
 */
static const char *lasting_path(const char *program)
{
    static char path[PATH_MAX];
    const char *slash = strrchr(program, '/');
    char directory[PATH_MAX];
    int fd;

    if (!slash)
        return program;
    snprintf(directory, sizeof directory, "%.*s/", (int)(slash - program), program);
    fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        fail(127, program);
    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", fd, slash + 1);
    return path;
}

int main(int argc, char **argv)
{
    const char *program;

    if (argc < 3) {
        fputs("isorend-bench-enter: usage: isorend-bench-enter DIRECTORY PROGRAM [ARGUMENT...]\n", stderr);
        return 2;
    }
    program = lasting_path(argv[2]);
    become_able_to_mount();
    if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        fail(1, "no mount namespace to be had");
    if (mount(argv[1], "/tmp", NULL, MS_BIND, NULL) < 0)
        fail(1, argv[1]);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        fail(1, "prctl");
    note_start();
    execvp(program, argv + 2);
    fail(errno == ENOENT ? 127 : 126, argv[2]);
}
