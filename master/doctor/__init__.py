"""What `isorend doctor` looks at: what this host offers, and whether a sandboxed worker renders here.

findings    what was found, for people and programs
host        the kernel, devices and packages
trial       a real worker that gets real work
"""
