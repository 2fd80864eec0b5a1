/*
 * A system call filter for the calling process, by libseccomp, and the listener that is told of what it does not allow
 * (seccomp(2), seccomp_unotify(2)).
 *
 * Functions return 0 or a descriptor, or a negative errno.
 */
#ifndef ISOREND_SYSCALL_FILTER_H
#define ISOREND_SYSCALL_FILTER_H

#include <stddef.h>
#include <stdint.h>

/* Arguments a rule can have conditions on: each system call has six. */
#define ISO_FILTER_CONDITIONS 6

/* (argument & mask) == value. */
struct iso_condition {
    uint32_t argument;
    uint64_t mask;
    uint64_t value;
};

/*
 * A system call by its name, under all of the conditions (one an argument). It is let through, or, with an errno in
 * `error`, answered with that. Rules with the same name are alternatives. A name that this machine does not have is passed
 * over; one that libseccomp has never heard of is an error.
 */
struct iso_rule {
    const char *name;
    int32_t error;
    uint32_t count;
    struct iso_condition conditions[ISO_FILTER_CONDITIONS];
};

struct iso_notice {
    uint64_t id;
    uint32_t pid; /* the thread's, as the listener's reader sees it */
    int32_t number;
    uint64_t arguments[6];
};

/* What iso_filter_receive found. */
enum iso_received {
    ISO_RECEIVED_NOTICE,
    ISO_RECEIVED_NOTHING, /* nothing waits, or who waited is gone */
    ISO_RECEIVED_END,     /* nobody is left under the filter */
};

/*
 * Puts all threads of this process under the filter, for good, and returns the listener. What no rule lets through waits
 * for the listener's reader. A system call of another architecture or of the x32 interface kills the process (SIGSYS).
 *
 * *failed is the index of the rule that libseccomp does not take, or `count`. -EOPNOTSUPP: the kernel (before 5.7) or
 * libseccomp cannot have a listener for all threads at once; -EEXIST: this process has loaded a filter already.
 */
int iso_filter_load(const struct iso_rule *rules, size_t count, size_t *failed);

/*
 * Puts this thread, and those that it starts, under a filter of another kind, for good: what a rule names is answered with
 * its errno, or with ENOSYS if it has none; all else is let through. Where the filter of iso_filter_load has a say too,
 * its listener is told instead of ENOSYS. To be loaded before that one, and once. *failed as there.
 */
int iso_filter_forbid(const struct iso_rule *rules, size_t count, size_t *failed);

/* Whether `fd` is a listener. */
int iso_filter_is_listener(int fd);

/* What waits at a listener; never blocks. An enum iso_received, or a negative errno. */
int iso_filter_receive(int fd, struct iso_notice *notice);

/* Lets the system call of a notice take its course. 0, or -ENOENT: who made it is gone. */
int iso_filter_continue(int fd, uint64_t id);

/* Copies the name of this machine's system call into `name`. -ENOENT: it has none. */
int iso_filter_name(int number, char *name, size_t size);

/* The number of a system call on a machine (as uname names it), -ENOENT if it has none, -EINVAL for an unknown machine or
 * a name that no machine has. */
int iso_filter_number(const char *machine, const char *name);

/*
 * Has abort() end the process with this exit code. Process 1 of a pid namespace ignores signals without a handler, so
 * that abort() would go on to fault at the next instruction and look like another crash.
 */
int iso_install_abort_handler(int code);

#endif
