/* Pixel formats of virtio-gpu scanouts, and their way to the display socket's one format. */
#ifndef ISOREND_PIXELS_H
#define ISOREND_PIXELS_H

#include <stdbool.h>
#include <stdint.h>

/* Whether `format` is one of enum virtio_gpu_formats (virtio 1.3, 5.7.6.8): four bytes a pixel. */
bool iso_pixels_known(uint32_t format);
/*
 * Converts `height` rows of `width` pixels to x8r8g8b8 as pixman means it (bytes B, G, R, X on a little-endian host).
 * Strides in bytes. False for an unknown format. The rows may not overlap.
 */
bool iso_pixels_to_xrgb(uint32_t format, const uint8_t *from, uint64_t from_stride, uint8_t *to, uint64_t to_stride,
                        uint32_t width, uint32_t height);

#endif
