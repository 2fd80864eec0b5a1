#include "syscall_filter.h"

#include <errno.h>
#include <poll.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* seccomp_api_get(3): a listener and all threads at once. */
#define API_TSYNC_AND_NOTIFY 6
/* seccomp_attr_set(3): a binary tree, so that the cost does not grow with the number of rules. */
#define BINARY_TREE 2

static int add_rule(scmp_filter_ctx filter, const struct iso_rule *rule, uint32_t action)
{
    struct scmp_arg_cmp comparisons[ISO_FILTER_CONDITIONS];
    int number = seccomp_syscall_resolve_name(rule->name);

    if (number == __NR_SCMP_ERROR || rule->count > ISO_FILTER_CONDITIONS)
        return -EINVAL;
    if (number < 0)
        return 0; /* another architecture's */
    for (uint32_t i = 0; i < rule->count; i++) {
        const struct iso_condition *condition = &rule->conditions[i];

        comparisons[i] = (struct scmp_arg_cmp){.arg = condition->argument};
        if (condition->mask == UINT64_MAX) {
            comparisons[i].op = SCMP_CMP_EQ;
            comparisons[i].datum_a = condition->value;
        } else {
            comparisons[i].op = SCMP_CMP_MASKED_EQ;
            comparisons[i].datum_a = condition->mask;
            comparisons[i].datum_b = condition->value;
        }
    }
    /* The "exact" variant refuses what it would have to change for this architecture. */
    return seccomp_rule_add_exact_array(filter, rule->error ? SCMP_ACT_ERRNO((uint32_t)rule->error) : action, number,
                                        rule->count, comparisons);
}

static int set_attributes(scmp_filter_ctx filter)
{
    static const struct {
        enum scmp_filter_attr attribute;
        uint32_t value;
    } wanted[] = {
        {SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS}, {SCMP_FLTATR_CTL_NNP, 1},
        {SCMP_FLTATR_CTL_TSYNC, 1},                       {SCMP_FLTATR_CTL_LOG, 0},
        {SCMP_FLTATR_CTL_OPTIMIZE, BINARY_TREE},          {SCMP_FLTATR_API_SYSRAWRC, 1},
    };

    for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++) {
        int error = seccomp_attr_set(filter, wanted[i].attribute, wanted[i].value);

        if (error)
            return error;
    }
    return 0;
}

static int build_and_load(scmp_filter_ctx filter, const struct iso_rule *rules, size_t count, uint32_t action,
                          size_t *failed)
{
    int error = set_attributes(filter);

    for (size_t i = 0; !error && i < count; i++) {
        error = add_rule(filter, &rules[i], action);
        if (error)
            *failed = i;
    }
    if (!error)
        error = seccomp_load(filter);
    return error;
}

int iso_filter_load(const struct iso_rule *rules, size_t count, size_t *failed)
{
    static int loaded;
    scmp_filter_ctx filter;
    int result;

    *failed = count;
    if (loaded)
        return -EEXIST; /* libseccomp keeps one listener and would load a second filter without */
    if (seccomp_api_get() < API_TSYNC_AND_NOTIFY)
        return -EOPNOTSUPP;
    filter = seccomp_init(SCMP_ACT_NOTIFY);
    if (!filter)
        return -ENOMEM;
    result = build_and_load(filter, rules, count, SCMP_ACT_ALLOW, failed);
    if (!result)
        result = seccomp_notify_fd(filter);
    loaded = result >= 0;
    seccomp_release(filter); /* the listener is open until its owner closes it */
    return result;
}

int iso_filter_forbid(const struct iso_rule *rules, size_t count, size_t *failed)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    int result;

    *failed = count;
    if (!filter)
        return -ENOMEM;
    /* "Trace" without a tracer is ENOSYS. Of what several filters say the kernel takes the strictest, and this is the
     * one that is less strict than telling a listener (seccomp(2)). */
    result = build_and_load(filter, rules, count, SCMP_ACT_TRACE(0), failed);
    seccomp_release(filter);
    return result;
}

int iso_filter_is_listener(int fd)
{
    uint64_t none = 0;

    /* No notice has the id 0; another file knows no such ioctl. */
    return ioctl(fd, SECCOMP_IOCTL_NOTIF_ID_VALID, &none) < 0 && errno == ENOENT;
}

static int receive(int fd, struct seccomp_notif *found)
{
    while (ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, found) < 0)
        if (errno != EINTR)
            return errno == ENOENT ? ISO_RECEIVED_NOTHING : -errno;
    return ISO_RECEIVED_NOTICE;
}

int iso_filter_receive(int fd, struct iso_notice *notice)
{
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    struct seccomp_notif *found;
    int result;

    /* Without a notice the ioctl waits for one. A notice that vanishes after this look makes it say ENOENT. */
    while (poll(&ready, 1, 0) < 0)
        if (errno != EINTR)
            return -errno;
    if (ready.revents & POLLNVAL)
        return -EBADF;
    if (!(ready.revents & POLLIN))
        return ready.revents & POLLHUP ? ISO_RECEIVED_END : ISO_RECEIVED_NOTHING;
    result = seccomp_notify_alloc(&found, NULL); /* as large as this kernel has it, and zeroed, which the ioctl wants */
    if (result)
        return result;
    result = receive(fd, found);
    if (result == ISO_RECEIVED_NOTICE) {
        *notice = (struct iso_notice){.id = found->id, .pid = found->pid, .number = found->data.nr};
        memcpy(notice->arguments, found->data.args, sizeof(notice->arguments));
    }
    seccomp_notify_free(found, NULL);
    return result;
}

int iso_filter_continue(int fd, uint64_t id)
{
    struct seccomp_notif_resp *answer;
    int result = seccomp_notify_alloc(NULL, &answer);

    if (result)
        return result;
    answer->id = id;
    answer->flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    while (ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, answer) < 0)
        if (errno != EINTR) {
            result = -errno;
            break;
        }
    seccomp_notify_free(NULL, answer);
    return result;
}

int iso_filter_name(int number, char *name, size_t size)
{
    char *found = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, number);

    if (!found)
        return -ENOENT;
    snprintf(name, size, "%s", found);
    free(found);
    return 0;
}

int iso_filter_number(const char *machine, const char *name)
{
    uint32_t architecture = seccomp_arch_resolve_name(machine);
    int number;

    if (!architecture)
        return -EINVAL;
    number = seccomp_syscall_resolve_name_arch(architecture, name);
    if (number == __NR_SCMP_ERROR)
        return -EINVAL;
    return number < 0 ? -ENOENT : number;
}

static int abort_code;

static void end(int signal_number)
{
    (void)signal_number;
    _exit(abort_code); /* exit_group(2): all threads, and no exit handlers */
}

int iso_install_abort_handler(int code)
{
    struct sigaction action = {.sa_handler = end};

    abort_code = code;
    return sigaction(SIGABRT, &action, NULL) ? -errno : 0;
}
