/*
 * isorend-bench-client: a GL program of which every frame is timed.
 *
 * It draws through EGL_MESA_platform_surfaceless and GLES 2 as any program would, so what it measures is decided by the
 * environment: GALLIUM_DRIVER=virpipe with VTEST_SOCKET_NAME brings it to a vtest server.
 *
 * The first frame stands for itself: first_frame_ms counts from ISOREND_BENCH_STARTED_NS (CLOCK_MONOTONIC, set by whoever
 * starts the program, just before) or, without that, from main. The frames after it are the measured ones.
 */
#include "canvas.h"
#include "frames.h"
#include "gl.h"
#include "scene.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct scene *const SCENES[] = {&gears_scene, &draws_scene, &upload_scene, &heavy_scene, &light_scene};
enum { SCENE_COUNT = sizeof SCENES / sizeof *SCENES, MAX_SIZE = 4096, MAX_FRAMES = 100000000 };

struct options {
    const struct scene *scene;
    double seconds; /* 0: count frames */
    long frames, warm_up;
    double pace;
    int width, height, load;
    bool wait;
    const char *dump;
};

static const char USAGE[] =
    "usage: isorend-bench-client --scene gears|draws|upload|heavy|light (--seconds S | --frames N)\n"
    "                            [--load N] [--pace HZ] [--size WxH] [--warm-up N] [--wait] [--dump FILE.ppm]\n"
    "\n"
    "Draws one frame, then frames for S seconds, or N of them, and prints one line of JSON: renderer, scene,\n"
    "first_frame_ms, frames, missed, seconds, frame_us {p50, p99, max}.\n"
    "\n"
    "  --load N    the work of a frame, in the scene's unit: draws of `draws`, MiB of `upload`, shader iterations of\n"
    "              `heavy` and `light`\n"
    "  --pace HZ   a frame is due HZ times a second, and its time is from then until it is finished; frames that an\n"
    "              earlier one made impossible are counted as missed\n"
    "  --warm-up N draw N frames after the first that are not measured\n"
    "  --wait      after these print \"ready\", and go on when a byte arrives on standard input\n"
    "  --dump F    write the last frame as a picture\n";

static double parse_number(const char *option, const char *text, double least, double most)
{
    char *end;
    double value;

    errno = 0;
    value = strtod(text, &end);
    if (errno || end == text || *end || !(value >= least && value <= most))
        die(2, "%s: \"%s\" is not a number from %g to %g", option, text, least, most);
    return value;
}

static long parse_count(const char *option, const char *text, long least, long most)
{
    char *end;
    long value;

    errno = 0;
    value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < least || value > most)
        die(2, "%s: \"%s\" is not a whole number from %ld to %ld", option, text, least, most);
    return value;
}

static void parse_size(struct options *options, const char *text)
{
    int end = 0;

    if (sscanf(text, "%4dx%4d%n", &options->width, &options->height, &end) != 2 || text[end] ||
        options->width < 1 || options->height < 1 || options->width > MAX_SIZE || options->height > MAX_SIZE)
        die(2, "--size: \"%s\" is not WIDTHxHEIGHT of 1 to %d each", text, MAX_SIZE);
}

static const struct scene *find_scene(const char *name)
{
    for (int i = 0; i < SCENE_COUNT; i++)
        if (strcmp(SCENES[i]->name, name) == 0)
            return SCENES[i];
    die(2, "--scene: there is none of the name \"%s\"", name);
}

/* Fills in what the scene decides, and refuses what does not go together. */
static void complete(struct options *options, const char *load)
{
    const struct scene *scene = options->scene;

    if (!scene)
        die(2, "--scene is missing");
    if ((options->seconds > 0) == (options->frames >= 0))
        die(2, "give one of --seconds and --frames");
    if (load && !scene->load_unit)
        die(2, "--load: the scene %s has none", scene->name);
    options->load = load ? (int)parse_count("--load", load, 1, scene->max_load) : scene->default_load;
    if (!options->width) {
        options->width = scene->width;
        options->height = scene->height;
    }
}

static struct options parse_options(int argc, char **argv)
{
    static const struct option known[] = {
        {"scene", required_argument, NULL, 's'}, {"seconds", required_argument, NULL, 't'},
        {"frames", required_argument, NULL, 'n'}, {"load", required_argument, NULL, 'l'},
        {"pace", required_argument, NULL, 'p'}, {"size", required_argument, NULL, 'z'},
        {"wait", no_argument, NULL, 'w'}, {"warm-up", required_argument, NULL, 'u'},
        {"dump", required_argument, NULL, 'd'},
        {"help", no_argument, NULL, 'h'}, {0},
    };
    struct options options = {.frames = -1};
    const char *load = NULL;
    int option;

    opterr = 0;
    while ((option = getopt_long(argc, argv, ":", known, NULL)) != -1) {
        switch (option) {
        case 's': options.scene = find_scene(optarg); break;
        case 't': options.seconds = parse_number("--seconds", optarg, 0.001, 86400); break;
        case 'n': options.frames = parse_count("--frames", optarg, 0, MAX_FRAMES); break;
        case 'l': load = optarg; break;
        case 'p': options.pace = parse_number("--pace", optarg, 0.1, 1000); break;
        case 'z': parse_size(&options, optarg); break;
        case 'w': options.wait = true; break;
        case 'u': options.warm_up = parse_count("--warm-up", optarg, 0, MAX_FRAMES); break;
        case 'd': options.dump = optarg; break;
        case 'h': fputs(USAGE, stdout); exit(0);
        case ':': die(2, "%s needs a value", argv[optind - 1]);
        default: die(2, "unknown option %s", argv[optind - 1]);
        }
    }
    if (optind < argc)
        die(2, "unexpected argument %s", argv[optind]);
    complete(&options, load);
    return options;
}

static int64_t process_start(int64_t in_main)
{
    const char *text = getenv("ISOREND_BENCH_STARTED_NS");
    char *end;
    long long value;

    if (!text)
        return in_main;
    errno = 0;
    value = strtoll(text, &end, 10);
    if (errno || end == text || *end || value <= 0 || value > in_main)
        die(2, "ISOREND_BENCH_STARTED_NS: \"%s\" is no time of CLOCK_MONOTONIC before now", text);
    return value;
}

static void wait_for_go(void)
{
    char byte;

    puts("ready");
    fflush(stdout);
    if (read(STDIN_FILENO, &byte, 1) != 1)
        die(1, "standard input ended before there was a byte to go on");
}

static void draw_frame(const struct scene *scene, struct canvas *canvas, unsigned number)
{
    scene->draw(number);
    canvas_finish_frame(canvas, number, scene->present);
}

/* The measured frames; `number` is that of the first. */
static void run(const struct options *options, struct canvas *canvas, struct frames *frames, unsigned number)
{
    int64_t end;

    frames_start(frames, options->pace);
    end = frames->started + (int64_t)(options->seconds * 1e9);
    while (options->seconds > 0 ? frames->finished < end : frames->count < (size_t)options->frames) {
        frames_wait(frames);
        draw_frame(options->scene, canvas, number++);
        frames_done(frames);
    }
}

static void print_string(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        unsigned char byte = (unsigned char)*text;

        if (byte < 0x20 || byte == '"' || byte == '\\')
            printf("\\u%04x", byte);
        else
            putchar(byte);
    }
    putchar('"');
}

static void print_report(const struct scene *scene, double first_frame_ms, struct frames *frames)
{
    printf("{\"renderer\": ");
    print_string((const char *)glGetString(GL_RENDERER));
    printf(", \"scene\": \"%s\", \"first_frame_ms\": %.3f, \"frames\": %zu, \"missed\": %zu, \"seconds\": %.6f",
           scene->name, first_frame_ms, frames->count, frames->missed,
           (double)(frames->finished - frames->started) / 1e9);
    printf(", \"frame_us\": {\"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f}}\n", frames_quantile_us(frames, 0.5),
           frames_quantile_us(frames, 0.99), frames_quantile_us(frames, 1));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    int64_t started = process_start(now_ns());
    struct options options = parse_options(argc, argv);
    struct canvas canvas = canvas_open(options.width, options.height);
    struct frames frames;
    unsigned number = 0;
    double first_frame_ms;

    options.scene->open(options.width, options.height, options.load);
    draw_frame(options.scene, &canvas, number++);
    first_frame_ms = (double)(now_ns() - started) / 1e6;
    check_gl("in the first frame");
    while (number <= (unsigned)options.warm_up)
        draw_frame(options.scene, &canvas, number++);
    if (options.wait)
        wait_for_go();
    run(&options, &canvas, &frames, number);
    check_gl("while drawing");
    if (options.dump)
        canvas_dump(&canvas, options.dump);
    print_report(options.scene, first_frame_ms, &frames);
    return 0;
}
