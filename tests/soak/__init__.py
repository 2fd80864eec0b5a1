"""A long run: guest programs and vtest clients come and go, are killed and taken over; then it is counted what is left.

    python -m tests.soak --minutes 30 [--seed 4711]

services.py has the services and what there is to count of them, sessions.py what happens to them, figures.py the table
at the end. Three services run all the time: one for VMs that draws, one for VMs whose engine draws nothing and so gets
through much more, and one for vtest clients.
"""
