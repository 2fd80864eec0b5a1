/*
 * Which resources a guest's streams write to, for those whose contents are copied when others are to see them (mirror.h).
 *
 * Theory of operation
 *
 * A context is followed command by command, before virglrenderer executes them: which object stands for which resource, and
 * which resources are bound where something is drawn to, for each of its sub-contexts. All of that is always followed, so that
 * a resource can become watched at any time; it costs something where bindings change, and nothing where something is drawn
 * as long as no resource is watched. What draws marks the watched resources that are bound for writing, what copies or
 * transfers the one it goes to.
 *
 * Too much may be marked, too little never. So what cannot be followed marks everything: commands that are not known here, a
 * context of which more was created than is remembered, and one of which a stream was refused half-way. Commands of a wrong
 * size are passed over: virglrenderer gives the context up at the first of them.
 */
#ifndef ISOREND_VIRGL_USAGE_H
#define ISOREND_VIRGL_USAGE_H

#include <stdbool.h>
#include <stdint.h>

#define ISO_VIRGL_MAX_FOLLOWED (1u << 16)   /* objects that stand for a resource, and sub-contexts, of one context */
#define ISO_VIRGL_MAX_SUB_CONTEXTS (1u << 8)

struct iso_virgl_usage; /* of one context */

/* NULL when out of memory. */
struct iso_virgl_usage *iso_virgl_usage_new(void);
void iso_virgl_usage_free(struct iso_virgl_usage *usage);

/* Before the first command of a stream. */
void iso_virgl_usage_begin(struct iso_virgl_usage *usage);
/* The command whose header this is, and whose words lie behind it. */
void iso_virgl_usage_follow(struct iso_virgl_usage *usage, const uint32_t *command);
/* From now on everything counts as written: the stream was not executed as it was followed. */
void iso_virgl_usage_lose(struct iso_virgl_usage *usage);

/* Have *written set when any context writes to the resource. False when out of memory. */
bool iso_virgl_watch(uint32_t resource_id, bool *written);
void iso_virgl_unwatch(uint32_t resource_id);
/* Something that is in no stream writes to the resource. */
void iso_virgl_mark_written(uint32_t resource_id);

#endif
