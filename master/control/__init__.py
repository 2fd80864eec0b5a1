"""The control plane: how people watch a service and tell it a few things, apart from the data plane.

    directory   where a service's sockets are, who may reach them, which services there are
    protocol    what is said on them
    server      the service's side
    plane       all of it as a service has it: there may be none
    client      the side of `isorend status` and its like

It is ZeroMQ over Unix sockets in a directory that is its owner's alone: whoever can connect is the service's own user,
who could as well end it, or root. What comes is checked all the same, since a bug there must cost no guest a frame.
"""
