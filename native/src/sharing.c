/* Which contexts have which resources, and so who is whose peer (order.h); mirrors and their owners. */
#include "mirror.h"
#include "plane_state.h"

#include <errno.h>
#include <stdlib.h>

/* Room for one more. False if out of memory. */
static bool room(void **items, uint32_t count, uint32_t *capacity, size_t size)
{
    if (count < *capacity)
        return true;
    uint32_t wanted = *capacity ? *capacity * 2 : 2;
    void *more = realloc(*items, wanted * size);
    if (!more)
        return false;
    *items = more;
    *capacity = wanted;
    return true;
}

/* ---- peers ---- */

static struct iso_peer *peer_of(const struct iso_context *context, const struct iso_context *other)
{
    for (uint32_t i = 0; i < context->peer_count; i++)
        if (context->peers[i].context == other)
            return &context->peers[i];
    return NULL;
}

static bool peer_room(struct iso_context *context)
{
    return room((void **)&context->peers, context->peer_count, &context->peer_capacity, sizeof(*context->peers));
}

/* There is room. `seen`: what the other was sent up to here cannot concern the resource. */
static void link_peer(struct iso_context *context, struct iso_context *other, uint64_t seen)
{
    struct iso_peer *peer = peer_of(context, other);
    if (!peer) {
        peer = &context->peers[context->peer_count++];
        *peer = (struct iso_peer){.context = other, .seen = seen};
    }
    peer->shared++;
}

/* One resource less. With the last one, a context that `waits` waits for the other's work so far. */
static void unlink_peer(struct iso_plane *plane, struct iso_context *context, struct iso_context *other, bool waits)
{
    struct iso_peer *peer = peer_of(context, other);
    struct iso_waiter *waiter = NULL;
    if (--peer->shared)
        return;
    if (waits && peer->seen < other->work)
        iso_order_wait(plane, context->lane, &waiter, other, other->work);
    *peer = context->peers[--context->peer_count];
    iso_waiter_release(plane, waiter);
}

/* ---- users ---- */

static struct iso_user *user_of(const struct iso_resource *resource, const struct iso_context *context)
{
    for (uint32_t i = 0; i < resource->user_count; i++)
        if (resource->users[i].context == context)
            return &resource->users[i];
    return NULL;
}

bool iso_resource_is_with(const struct iso_resource *resource, const struct iso_context *context)
{
    const struct iso_user *user = user_of(resource, context);
    return user && !user->left;
}

static void drop_user(struct iso_resource *resource, struct iso_user *user)
{
    struct iso_context *context = user->context;
    *user = resource->users[--resource->user_count];
    iso_context_unref(context);
}

static void drop_those_who_are_done(struct iso_resource *resource)
{
    for (uint32_t i = resource->user_count; i--;) {
        struct iso_user *user = &resource->users[i];
        if (user->left && !iso_context_is_at(user->context, user->left))
            drop_user(resource, user);
    }
}

static bool mirror_room(struct iso_context *context)
{
    return room((void **)&context->mirrored, context->mirrored_count, &context->mirrored_capacity, sizeof(*context->mirrored));
}

static void forget_mirrored(struct iso_context *context, const struct iso_resource *resource)
{
    for (uint32_t i = 0; i < context->mirrored_count; i++)
        if (context->mirrored[i] == resource) {
            context->mirrored[i] = context->mirrored[--context->mirrored_count];
            return;
        }
}

static bool attach_room(struct iso_resource *resource, struct iso_context *context)
{
    if (!room((void **)&resource->users, resource->user_count, &resource->user_capacity, sizeof(*resource->users)))
        return false;
    if (resource->mirrored && !mirror_room(context))
        return false;
    for (uint32_t i = 0; i < resource->user_count; i++)
        if (!peer_room(resource->users[i].context))
            return false;
    uint32_t wanted = context->peer_count + resource->user_count; /* at most */
    if (wanted > context->peer_capacity) {
        struct iso_peer *more = realloc(context->peers, wanted * sizeof(*more));
        if (!more)
            return false;
        context->peers = more;
        context->peer_capacity = wanted;
    }
    return true;
}

/* Those who left the resource may still be drawing into it. */
static void wait_for_those_who_left(struct iso_plane *plane, const struct iso_resource *resource, const struct iso_context *context)
{
    struct iso_waiter *waiter = NULL;
    for (uint32_t i = 0; i < resource->user_count; i++)
        if (resource->users[i].left)
            iso_order_wait(plane, context->lane, &waiter, resource->users[i].context, resource->users[i].left);
    iso_waiter_release(plane, waiter);
}

static int attach(struct iso_plane *plane, struct iso_resource *resource, struct iso_context *context)
{
    if (iso_resource_is_with(resource, context))
        return 0;
    if (!attach_room(resource, context))
        return -ENOMEM;
    struct iso_user *user = user_of(resource, context); /* one who left and comes back */
    wait_for_those_who_left(plane, resource, context);
    for (uint32_t i = 0; i < resource->user_count; i++) {
        struct iso_context *other = resource->users[i].context;
        if (resource->users[i].left)
            continue;
        link_peer(context, other, 0);
        link_peer(other, context, context->work);
    }
    if (!user) {
        user = &resource->users[resource->user_count++];
        user->context = context;
        iso_context_ref(context);
    }
    user->left = 0;
    context->resources++;
    if (resource->mirrored)
        context->mirrored[context->mirrored_count++] = resource;
    return 0;
}

static void disown(struct iso_plane *plane, struct iso_resource *resource)
{
    if (resource->owner && !resource->owner->lane->lost)
        iso_order_copy_out(plane, resource->owner, resource->id);
    resource->owner = NULL;
}

static void detach(struct iso_plane *plane, struct iso_resource *resource, struct iso_context *context)
{
    struct iso_user *user = user_of(resource, context);
    if (!user || user->left)
        return;
    if (resource->owner == context)
        disown(plane, resource);
    user->left = context->work;
    context->resources--;
    if (resource->mirrored)
        forget_mirrored(context, resource);
    for (uint32_t i = 0; i < resource->user_count; i++) {
        struct iso_context *other = resource->users[i].context;
        if (resource->users[i].left || other == context)
            continue;
        unlink_peer(plane, other, context, true);
        unlink_peer(plane, context, other, false);
    }
    if (!iso_context_is_at(context, context->work))
        drop_user(resource, user);
    drop_those_who_are_done(resource);
}

void iso_sharing_forget(struct iso_plane *plane, struct iso_context *context)
{
    for (uint32_t i = 0; context->resources && i < plane->resources.capacity; i++)
        if (plane->resources.slots[i].id)
            detach(plane, plane->resources.slots[i].value, context);
    if (context->refs > 1) /* there may be somebody who waits for it later */
        iso_order_point(plane, context);
    context->lane = &plane->grave;
    iso_context_unref(context);
}

void iso_sharing_end(struct iso_plane *plane, struct iso_resource *resource)
{
    for (uint32_t i = 0; i < resource->user_count; i++) {
        struct iso_context *context = resource->users[i].context;
        if (resource->users[i].left)
            continue;
        context->resources--;
        if (resource->mirrored)
            forget_mirrored(context, resource);
        for (uint32_t j = 0; j < resource->user_count; j++)
            if (j != i && !resource->users[j].left)
                unlink_peer(plane, context, resource->users[j].context, false);
    }
    while (resource->user_count)
        drop_user(resource, resource->users);
    free(resource->users);
}

void iso_resource_written(struct iso_resource *resource)
{
    if (resource->mirror)
        atomic_fetch_add(&resource->mirror->version, 1);
    resource->owner = NULL;
}

bool iso_resource_is_in_use(const struct iso_resource *resource)
{
    for (uint32_t i = 0; i < resource->user_count; i++) {
        const struct iso_user *user = &resource->users[i];
        const struct iso_lane *lane = user->context->lane;
        if (iso_context_is_at(user->context, user->left ? user->left : user->context->work) || lane->backlog_first)
            return true;
    }
    return resource->owner;
}

/* ---- called from Python ---- */

int iso_plane_lane_bind(struct iso_plane *plane, struct iso_lane *lane, uint32_t ctx_id)
{
    struct iso_context *context = iso_context_new(ctx_id, lane);
    int error = context ? 0 : -ENOMEM;
    pthread_mutex_lock(&plane->lock);
    if (iso_idmap_get(&plane->contexts, ctx_id))
        error = -EEXIST;
    else if (context && !iso_idmap_put(&plane->contexts, ctx_id, context))
        error = -ENOMEM;
    pthread_mutex_unlock(&plane->lock);
    if (error && context)
        iso_context_unref(context);
    return error;
}

void iso_plane_context_forget(struct iso_plane *plane, uint32_t ctx_id)
{
    pthread_mutex_lock(&plane->lock);
    struct iso_context *context = iso_idmap_remove(&plane->contexts, ctx_id);
    if (context)
        iso_sharing_forget(plane, context);
    iso_plane_settle(plane);
    pthread_mutex_unlock(&plane->lock);
}

int iso_plane_resource_attach(struct iso_plane *plane, uint32_t resource_id, uint32_t ctx_id)
{
    pthread_mutex_lock(&plane->lock);
    struct iso_resource *resource = iso_idmap_get(&plane->resources, resource_id);
    struct iso_context *context = iso_idmap_get(&plane->contexts, ctx_id);
    int error = resource && context ? attach(plane, resource, context) : -ENOENT;
    iso_plane_settle(plane);
    pthread_mutex_unlock(&plane->lock);
    return error;
}

void iso_plane_resource_detach(struct iso_plane *plane, uint32_t resource_id, uint32_t ctx_id)
{
    pthread_mutex_lock(&plane->lock);
    struct iso_resource *resource = iso_idmap_get(&plane->resources, resource_id);
    struct iso_context *context = iso_idmap_get(&plane->contexts, ctx_id);
    if (resource && context)
        detach(plane, resource, context);
    iso_plane_settle(plane);
    pthread_mutex_unlock(&plane->lock);
}

static int mirror(struct iso_resource *resource, struct iso_context *owner, struct iso_mirror_header *header)
{
    if (owner && !iso_resource_is_with(resource, owner))
        return -ENOENT;
    for (uint32_t i = 0; !resource->mirrored && i < resource->user_count; i++)
        if (!mirror_room(resource->users[i].context))
            return -ENOMEM;
    for (uint32_t i = 0; !resource->mirrored && i < resource->user_count; i++) {
        struct iso_context *context = resource->users[i].context;
        if (!resource->users[i].left)
            context->mirrored[context->mirrored_count++] = resource;
    }
    resource->mirrored = true;
    resource->mirror = header;
    resource->owner = owner;
    return 0;
}

int iso_plane_resource_mirror(struct iso_plane *plane, uint32_t resource_id, uint32_t owner, struct iso_mirror_header *header)
{
    pthread_mutex_lock(&plane->lock);
    struct iso_resource *resource = iso_idmap_get(&plane->resources, resource_id);
    struct iso_context *context = iso_idmap_get(&plane->contexts, owner);
    int error = resource && (context || !owner) ? mirror(resource, context, header) : -ENOENT;
    pthread_mutex_unlock(&plane->lock);
    return error;
}

void iso_plane_resource_unmirror(struct iso_plane *plane, uint32_t resource_id)
{
    pthread_mutex_lock(&plane->lock);
    struct iso_resource *resource = iso_idmap_get(&plane->resources, resource_id);
    for (uint32_t i = 0; resource && resource->mirrored && i < resource->user_count; i++)
        forget_mirrored(resource->users[i].context, resource);
    if (resource) {
        resource->mirrored = false;
        resource->mirror = NULL;
        resource->owner = NULL;
    }
    pthread_mutex_unlock(&plane->lock);
}

void iso_plane_resource_written(struct iso_plane *plane, uint32_t resource_id)
{
    pthread_mutex_lock(&plane->lock);
    struct iso_resource *resource = iso_idmap_get(&plane->resources, resource_id);
    if (resource && resource->mirrored)
        iso_resource_written(resource);
    pthread_mutex_unlock(&plane->lock);
}

static void sync(struct iso_plane *plane, const struct iso_resource *resource, struct iso_waiter *waiter)
{
    if (resource->owner && !resource->owner->lane->lost)
        iso_order_copy_out(plane, resource->owner, resource->id);
    for (uint32_t i = 0; i < resource->user_count; i++) {
        const struct iso_user *user = &resource->users[i];
        iso_waiter_add(plane, waiter, user->context, user->left ? user->left : user->context->work);
    }
    iso_waiter_release(plane, waiter);
}

int iso_plane_resource_sync(struct iso_plane *plane, uint32_t resource_id, uint64_t token)
{
    struct iso_waiter *waiter = calloc(1, sizeof(*waiter));
    if (!waiter)
        return -ENOMEM;
    *waiter = (struct iso_waiter){.points = 1, .for_python = true, .token = token};
    pthread_mutex_lock(&plane->lock);
    const struct iso_resource *resource = iso_idmap_get(&plane->resources, resource_id);
    if (resource)
        sync(plane, resource, waiter);
    else
        free(waiter);
    iso_plane_settle(plane);
    pthread_mutex_unlock(&plane->lock);
    return resource ? 0 : -ENOENT;
}
