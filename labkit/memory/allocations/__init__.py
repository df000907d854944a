"""Allocator history: who allocated what, what was live at the peak, and how it is cut up.

``snapshot`` reads torch's snapshots, ``replay``, ``lines`` and ``layout`` are pure functions over
them, ``analysis`` puts their answers together, ``text``, ``drawing`` and ``page`` show those, and
``record`` makes recordings. None of them imports torch but the recorder.
"""
