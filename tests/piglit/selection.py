"""Which of piglit's tests are run: those of profile quick_gl whose name one of TESTS is in and none of EXCLUDED."""

from __future__ import annotations

PROFILE = "quick_gl"

# Regular expressions, as piglit takes them: core GL version by version, and extensions with much traffic between a
# client and its renderer (buffers, queries, copies, fences).
TESTS = (
    r"^spec@!opengl [123]\.\d@",
    r"^spec@arb_copy_buffer@",
    r"^spec@arb_draw_elements_base_vertex@",
    r"^spec@arb_framebuffer_object@",
    r"^spec@arb_map_buffer_range@",
    r"^spec@arb_occlusion_query2?@",
    r"^spec@arb_pixel_buffer_object@",
    r"^spec@arb_sync@",
    r"^spec@arb_texture_buffer_object@",
    r"^spec@arb_texture_view@",
    r"^spec@arb_timer_query@",
    r"^spec@arb_transform_feedback\d@",
    r"^spec@arb_uniform_buffer_object@",
    r"^spec@arb_vertex_buffer_object@",
    r"^spec@ext_framebuffer_blit@",
    r"^spec@ext_texture_array@",
    r"^spec@nv_conditional_render@",
)

# Tests that take most of the time there is and ask nothing of a renderer that others do not.
EXCLUDED = (
    r"@copypixels-sync$",
    r"@draw-sync$",
    r"@gl-1.0-blend-func$",
    r"@getteximage-formats",
    r"@max-texture-size",
    r"@rendering-formats$",
    r"@streaming-texture-leak$",
    r"@texsubimage",
    r"@texwrap formats",
)

# For --quick.
QUICK_TESTS = (r"^spec@arb_(map_buffer_range|occlusion_query|sync|uniform_buffer_object)@",)
