/*
 * A guest's memory: three regions of one file, the second right behind the first in the guest's addresses and elsewhere in
 * ours, the third above 4 GiB. It lives as long as the process and is zeroed for each input.
 */
#ifndef ISOREND_FUZZ_GUEST_H
#define ISOREND_FUZZ_GUEST_H

#include "guestmem.h"
#include "input.h"

enum { GUEST_LOW_BYTES = 64 << 10, GUEST_NEXT_BYTES = 16 << 10, GUEST_HIGH_BYTES = 16 << 10 };
#define GUEST_HIGH UINT64_C(0x100000000)
#define GUEST_UVA UINT64_C(0x7f0000000000) /* the front end's address of guest address 0 */

/* Zeroed, and the same every time. */
struct iso_guestmem *guest_memory(void);
/* A guest address: mostly one of RAM, around its edges or not. */
uint64_t guest_address(struct input *input);
/* guest_changes.c: from now on each read finds changes made just before it, as the input says; NULL: no more. */
void guest_changes(struct input *input);
/* Writes what is RAM of the range. */
void guest_put(uint64_t gpa, const void *from, size_t len);

#endif
