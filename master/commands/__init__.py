"""The commands of `isorend` that watch services. They know the control plane's client and no more of a service."""
