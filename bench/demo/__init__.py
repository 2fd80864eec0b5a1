"""`isorend demo`: guest programs in worker processes of their own, one of them killed in the middle of a submit.

Layers: command (arguments), show (the run from the first process to the last file), performance (the programs play),
program (one of them), accident (the kill), progress (what is seen meanwhile), results (figures and the verdict),
contact_sheet (the picture); vm is the same idea with QEMU and a Debian guest. scenes has what the programs draw.
"""
