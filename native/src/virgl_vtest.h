/* What a vtest session needs of virglrenderer; see vtest_ops.h. Wants an engine that was started ISO_VIRGL_FOR_VTEST. */
#ifndef ISOREND_VIRGL_VTEST_H
#define ISOREND_VIRGL_VTEST_H

#include "vtest_ops.h"

extern const struct iso_vtest_ops iso_virgl_vtest_ops;

#endif
