#include "pixels.h"

#include <string.h>

/* Where blue, green and red stand in a pixel's four bytes. */
static bool places(uint32_t format, uint32_t *blue, uint32_t *green, uint32_t *red)
{
    switch (format) {
    case 1: /* B8G8R8A8 */
    case 2: /* B8G8R8X8 */
        *blue = 0, *green = 1, *red = 2;
        return true;
    case 3: /* A8R8G8B8 */
    case 4: /* X8R8G8B8 */
        *blue = 3, *green = 2, *red = 1;
        return true;
    case 67:  /* R8G8B8A8 */
    case 134: /* R8G8B8X8 */
        *blue = 2, *green = 1, *red = 0;
        return true;
    case 68:  /* X8B8G8R8 */
    case 121: /* A8B8G8R8 */
        *blue = 1, *green = 2, *red = 3;
        return true;
    default:
        return false;
    }
}

bool iso_pixels_known(uint32_t format)
{
    uint32_t blue, green, red;
    return places(format, &blue, &green, &red);
}

bool iso_pixels_to_xrgb(uint32_t format, const uint8_t *from, uint64_t from_stride, uint8_t *to, uint64_t to_stride,
                        uint32_t width, uint32_t height)
{
    uint32_t blue, green, red;
    if (!places(format, &blue, &green, &red))
        return false;
    for (uint32_t y = 0; y < height; y++, from += from_stride, to += to_stride) {
        if (blue == 0) {
            memcpy(to, from, 4ull * width);
            continue;
        }
        for (uint32_t x = 0; x < width; x++) {
            const uint8_t *in = from + 4ull * x;
            uint8_t *out = to + 4ull * x;
            out[0] = in[blue];
            out[1] = in[green];
            out[2] = in[red];
            out[3] = 0xff;
        }
    }
    return true;
}
