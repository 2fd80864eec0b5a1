/* What there is to draw. One scene lives in a process, so scenes keep their state in their files. */
#ifndef BENCH_SCENE_H
#define BENCH_SCENE_H

#include <stdbool.h>

struct scene {
    const char *name;
    const char *load_unit; /* what --load counts; NULL: the scene has none */
    int default_load, max_load;
    int width, height;     /* unless --size says otherwise */
    bool present;          /* every frame is read back as a whole, else its last pixel only */
    void (*open)(int width, int height, int load);
    /* Draws frame `number`; the same number gives the same picture. */
    void (*draw)(unsigned number);
};

extern const struct scene gears_scene, draws_scene, upload_scene, heavy_scene, light_scene;

#endif
