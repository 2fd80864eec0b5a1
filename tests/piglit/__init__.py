"""Piglit over vtest: are a program's results through isorend the same as through virgl_test_server?

`python -m tests.piglit` runs some hundred of piglit's GL tests on both, with the same libvirglrenderer and the same
Mesa as client, and compares test by test. Layers: compare (results of two sides), run (piglit in its Debian root),
selection (which tests), __main__ (the command).
"""
