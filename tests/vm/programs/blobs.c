/*
 * Blob resources and timelines as a guest program uses them, by ioctls alone. Each line it prints is something that holds; the
 * exit code is 0 when all of them did.
 *
 *   blobs share            a mappable host blob that two processes and their contexts see
 *   blobs cycles COUNT     as many host blobs, one after the other: made, mapped, written, unmapped, closed
 *   blobs hold COUNT       as many host blobs at a time, mapped; then sleeps
 *   blobs guest            guest blobs: memory, in another process, in two contexts
 *   blobs rings DELAY      (on the null engine) a fence of ring 0 that takes DELAY ms, and others that do not wait for it
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gpu.h"
#include "virtgpu_abi.h"

enum { CAPSET_VIRGL = 1, CAPSET_VIRGL2 = 2 };
enum { BLOB_BYTES = 64 << 10, PAGE_BYTES = 4096 };
/* null_engine.h */
enum { NULL_NOP = 0, NULL_DELAY = 5 };

static void fill(uint8_t *memory, size_t nbytes, unsigned seed)
{
    for (size_t i = 0; i < nbytes; i++)
        memory[i] = (uint8_t)((i * 7 + i / 251 + seed) & 0xff);
}

static bool is_filled(const uint8_t *memory, size_t nbytes, unsigned seed)
{
    for (size_t i = 0; i < nbytes; i++)
        if (memory[i] != (uint8_t)((i * 7 + i / 251 + seed) & 0xff))
            return false;
    return true;
}

static void say(const char *what)
{
    printf("%s\n", what);
    fflush(stdout);
}

/* Runs in a process of its own; the end of the program if that is not a good one. */
static void in_another_process(void (*what)(int, uint64_t), int fd, uint64_t nbytes)
{
    int status;
    pid_t pid = fork();

    if (pid == -1)
        fail("fork");
    if (pid == 0) {
        what(fd, nbytes);
        exit(0);
    }
    if (waitpid(pid, &status, 0) != pid)
        fail("waitpid");
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the other process");
}

/* The other context: finds what was written (seed 1) in three ways, leaves something else (seed 2). */
static void read_and_write(int fd, uint64_t nbytes)
{
    struct gpu gpu = gpu_open(CAPSET_VIRGL2, 1);
    struct object blob = gpu_import(gpu, fd, nbytes);
    struct object v1 = gpu_v1_buffer(gpu, (uint32_t)nbytes);
    uint8_t *memory = gpu_map(gpu, blob), *copy = gpu_map(gpu, v1);

    check(is_filled(memory, nbytes, 1), "bytes in the other process's mapping");
    say("the other process maps the same bytes");
    gpu_copy_buffer(gpu, v1, blob);
    gpu_transfer_from_host(gpu, v1);
    check(is_filled(copy, nbytes, 1), "bytes that the other context has copied");
    say("the other context copies the same bytes");
    fill(copy, nbytes, 2);
    gpu_transfer_to_host(gpu, v1);
    gpu_copy_buffer(gpu, blob, v1);
    check(is_filled(memory, nbytes, 2), "bytes that the other context has drawn");
    say("what the other context draws is in its mapping");
}

static void share(void)
{
    struct gpu gpu = gpu_open(CAPSET_VIRGL2, 1);
    struct object blob, copy;
    uint8_t *memory, *copied;

    check(gpu_param(gpu, PARAM_RESOURCE_BLOB) && gpu_param(gpu, PARAM_HOST_VISIBLE) && gpu_param(gpu, PARAM_CONTEXT_INIT),
          "blobs, host-visible memory and CONTEXT_INIT");
    blob = gpu_host_buffer(gpu, BLOB_BYTES, 7);
    memory = gpu_map(gpu, blob);
    fill(memory, BLOB_BYTES, 1);
    say("mapped a host blob");
    in_another_process(read_and_write, gpu_export(gpu, blob), BLOB_BYTES);
    check(is_filled(memory, BLOB_BYTES, 2), "bytes that the other context has left");
    say("what the other context drew is in the first mapping");
    /* The other context is gone. */
    copy = gpu_v1_buffer(gpu, BLOB_BYTES);
    copied = gpu_map(gpu, copy);
    gpu_copy_buffer(gpu, copy, blob);
    gpu_transfer_from_host(gpu, copy);
    check(is_filled(copied, BLOB_BYTES, 2), "bytes that the first context copies");
    say("the first context copies what the other one drew");
}

static void cycles(unsigned long count)
{
    struct gpu gpu = gpu_open(CAPSET_VIRGL2, 1);

    for (unsigned long i = 0; i < count; i++) {
        struct object blob = gpu_host_buffer(gpu, PAGE_BYTES * (1 + i % 4), (uint32_t)i + 1);
        uint8_t *memory = gpu_map(gpu, blob);

        memory[blob.nbytes - 1] = (uint8_t)i;
        check(memory[blob.nbytes - 1] == (uint8_t)i, "a byte that was written");
        if (munmap(memory, blob.nbytes))
            fail("munmap");
        gpu_close_object(gpu, blob);
    }
    printf("%lu blobs came and went\n", count);
}

static void hold(unsigned long count)
{
    struct gpu gpu = gpu_open(CAPSET_VIRGL2, 1);

    for (unsigned long i = 0; i < count; i++)
        fill(gpu_map(gpu, gpu_host_buffer(gpu, BLOB_BYTES, (uint32_t)i + 1)), BLOB_BYTES, (unsigned)i);
    printf("%lu blobs are mapped\n", count);
    fflush(stdout);
    for (;;)
        pause();
}

static void read_guest_blob(int fd, uint64_t nbytes)
{
    struct gpu gpu = gpu_open(CAPSET_VIRGL2, 1);
    uint8_t *memory = gpu_map(gpu, gpu_import(gpu, fd, nbytes));

    check(is_filled(memory, nbytes, 3), "a guest blob's bytes in the other process");
    fill(memory, nbytes, 4);
}

static void guest(void)
{
    struct gpu gpu = gpu_open(CAPSET_VIRGL2, 1);
    struct object blob = gpu_guest_blob(gpu, BLOB_BYTES);
    uint8_t *memory = gpu_map(gpu, blob);

    fill(memory, BLOB_BYTES, 3);
    in_another_process(read_guest_blob, gpu_export(gpu, blob), BLOB_BYTES);
    check(is_filled(memory, BLOB_BYTES, 4), "a guest blob's bytes");
    gpu_close_object(gpu, blob);
    say("a guest blob is the same in two processes");
}

static int null_command(struct gpu gpu, uint32_t opcode, uint32_t argument, uint32_t ring_idx)
{
    const uint32_t words[] = {opcode, argument};

    return gpu_submit(gpu, words, 2, ring_idx, NULL, 0);
}

static void rings(unsigned long delay)
{
    enum { RINGS = 4 };
    struct gpu gpu = gpu_open(CAPSET_VIRGL, RINGS);
    int slow = null_command(gpu, NULL_DELAY, (uint32_t)delay, 0);
    int behind = null_command(gpu, NULL_NOP, 0, 0);

    for (uint32_t ring = 1; ring < RINGS; ring++)
        check(gpu_fence_wait(null_command(gpu, NULL_NOP, 0, ring), -1), "wait for a fence of another ring");
    say("fences of the other rings are signalled");
    check(!gpu_fence_wait(slow, 0), "the slow fence came before its time, or held up those of the other rings");
    check(!gpu_fence_wait(behind, 0), "a fence overtook one of its own ring");
    say("the slow ring's are not");
    check(gpu_fence_wait(slow, -1) && gpu_fence_wait(behind, -1), "wait for the slow ring");
    say("now they are");
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    unsigned long number = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;

    if (!strcmp(what, "share"))
        share();
    else if (!strcmp(what, "cycles"))
        cycles(number);
    else if (!strcmp(what, "hold"))
        hold(number);
    else if (!strcmp(what, "guest"))
        guest();
    else if (!strcmp(what, "rings"))
        rings(number);
    else
        check(false, "usage: blobs share | cycles COUNT | hold COUNT | guest | rings DELAY");
    return 0;
}
