"""The environment that the launcher and its workers are to be born with; the master knows it too."""

WORKER_ENVIRONMENT: dict[str, str] = {
    # PyOpenGL takes its functions from EGL, never from GLX.
    "PYOPENGL_PLATFORM": "egl",
    # PyOpenGL may load numpy, whose BLAS starts threads; the launcher forks and must have none.
    "OPENBLAS_NUM_THREADS": "1",
}
"""What the launcher's environment has to hold when it is executed; libraries read it too early to be set later."""
