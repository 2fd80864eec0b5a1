/* The null engine for a vtest session: capability sets of zeros, resources that are ids, memory that nobody writes. */
#ifndef ISOREND_NULL_VTEST_H
#define ISOREND_NULL_VTEST_H

#include "vtest_ops.h"

extern const struct iso_vtest_ops iso_null_vtest_ops;

#endif
