"""Workers that have been taken over: real ones, with one more thread that does what the test orders.

    with rogue_service(["--engine=null"]) as service:         # a whole service, started by service.py
        worker = service.hub.worker_of(context.ctx_id)         # its process id is the kernel's word
        worker.order("null-read")

launcher.py is the launcher of such workers, thread.py the thread, deeds.py what it can do. The thread starts when the
driver is loaded and before the worker is sealed, as code would run there that a guest has smuggled in; what it needs
for its deeds it makes then. Its line to the test is a socket that the worker was born with. On the test's side hub.py
holds the lines, programs.py has the guest programs that suffer, ends.py the ends that they are put to, round.py plays
them in the VM of world.py.
"""
