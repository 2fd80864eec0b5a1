"""The guest side of virgl: what Mesa's guest driver would write into SUBMIT_3D, made by hand.

``protocol`` has the numbers, ``resources`` describes 3D resources, ``state`` state objects, ``encoder`` builds command
streams, ``scene`` says what a guest program is. None of them moves bytes anywhere: a transport does (the fake VMM, or
``direct`` for tests of the streams themselves).
"""
