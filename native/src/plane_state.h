/* What the files of the plane share. Every function here is called with plane->lock held. */
#ifndef ISOREND_PLANE_STATE_H
#define ISOREND_PLANE_STATE_H

#include "idmap.h"
#include "order.h"
#include "plane.h"

#include <pthread.h>

enum { ISO_MAX_REQUESTS = 2 * ISO_VQ_MAX_NUM };

struct iso_queue {
    struct iso_vq vq;
    struct iso_request *stalled; /* a command for a lane, behind commands that Python has yet to place */
    uint32_t unplaced;           /* commands handed to Python since it last found none */
    uint32_t open;               /* requests not yet on the used ring */
};

/* A context that has a resource, or had it. */
struct iso_user {
    struct iso_context *context; /* held */
    uint64_t left;               /* 0: it has it; else what it was sent up to here may still touch the resource */
};

/* A resource as the fast path needs it. */
struct iso_resource {
    uint32_t id;
    struct iso_texture texture;
    struct iso_backing *backing;
    bool guest_memory; /* its storage is the guest's memory itself */
    bool mirrored;
    struct iso_mirror_header *mirror; /* if the plane is to tell of what is written there, or NULL */
    struct iso_context *owner;        /* mirrored: whose object is the latest, one of those that have it; NULL: the mirror is */
    uint32_t user_count, user_capacity;
    struct iso_user *users;
    uint32_t width, height; /* of the picture; 0: it is none */
    uint8_t *pixels;        /* the picture's shadow, or NULL */
};

struct iso_scanout {
    uint32_t resource_id;         /* 0: none */
    struct iso_rect part, damage; /* width 0: no damage */
    bool flipped;                 /* and Python has yet to be told: an event is under way */
};

struct iso_event_node {
    struct iso_event event;
    struct iso_event_node *next;
};

struct iso_plane {
    pthread_mutex_t lock;
    pthread_t thread;
    bool running, stopping, python_told, ring_idx;
    int epoll_fd, python_fd, wake_fd;
    struct iso_guestmem *mem;
    struct iso_queue queues[ISO_QUEUE_COUNT];
    struct iso_request *requests[ISO_MAX_REQUESTS]; /* made as needed, kept */
    uint32_t request_count;
    struct iso_request *free_requests;
    struct iso_request *handed_first, *handed_last; /* commands that wait for Python */
    struct iso_event_node *events_first, *events_last;
    struct iso_timeline *timelines; /* those with requests on them */
    uint64_t clock;                 /* work of contexts ever routed */
    struct iso_lane *ready;         /* lanes whose backlog may go on */
    struct iso_idmap contexts;      /* ctx_id -> struct iso_context */
    struct iso_idmap lanes;         /* lane id -> struct iso_lane */
    struct iso_idmap resources;     /* resource id -> struct iso_resource */
    struct iso_scanout scanouts[ISO_MAX_SCANOUTS];
    struct iso_lane grave;          /* where contexts lead whose worker is gone: a lane that is lost and nothing else */
    struct iso_plane_stats stats;
};

/* What the epoll set's data words mean: kind << 32 | number. */
enum iso_source { ISO_SOURCE_WAKE, ISO_SOURCE_KICK, ISO_SOURCE_LANE, ISO_SOURCE_NONE /* stop listening */ };
int iso_plane_listen(struct iso_plane *plane, int fd, enum iso_source source, uint32_t number);

/* plane.c */
void iso_plane_pass(struct iso_plane *plane); /* drains the queues as far as the order allows, then notifies */
void iso_plane_post(struct iso_plane *plane, struct iso_event event);
void iso_plane_tell_python(struct iso_plane *plane);

/* queues.c */
bool iso_queue_drain(struct iso_plane *plane, uint32_t index); /* true if it stopped with more to do right now */
void iso_queue_notify(struct iso_plane *plane);
void iso_request_answer(struct iso_plane *plane, struct iso_request *request, uint32_t type, const uint8_t *payload, uint32_t len);

/* commands.c */
bool iso_command_is_fast(uint32_t type);
bool iso_command_run(struct iso_plane *plane, struct iso_request *request); /* false: Python has to do it */

/* pictures.c: the same for the 2D commands */
bool iso_picture_transfer(struct iso_plane *plane, struct iso_request *request);
bool iso_picture_flush(struct iso_plane *plane, struct iso_request *request);
bool iso_picture_flip(struct iso_plane *plane, struct iso_request *request);

/* sharing.c */
bool iso_resource_is_with(const struct iso_resource *resource, const struct iso_context *context);
void iso_resource_written(struct iso_resource *resource); /* one that is mirrored */
bool iso_resource_is_in_use(const struct iso_resource *resource); /* the same: its mirror may be read or written just now */
void iso_sharing_forget(struct iso_plane *plane, struct iso_context *context);
void iso_sharing_end(struct iso_plane *plane, struct iso_resource *resource); /* before it is freed */

/* lanes.c */
void iso_lane_ready(struct iso_plane *plane, struct iso_lane *lane); /* its backlog may go on; done by iso_plane_settle */
void iso_plane_settle(struct iso_plane *plane); /* lets lanes go on, then notifies; for whoever holds no lane in hand */
void iso_lane_route(struct iso_plane *plane, struct iso_lane *lane, struct iso_work *work);
void iso_lane_drain(struct iso_plane *plane, struct iso_lane *lane);

#endif
