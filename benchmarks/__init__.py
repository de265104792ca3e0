"""Measurements beside the peers, all in one run on one real server: ``nox -s bench``.

::

    __main__ → session → runner → child ═ pipes ═ clients.serve → rounds → a client → server
                  │         └→ server's counts
                  └→ imports, routing, wire_bytes (in one process)
    results → goals, thresholds → tables, report, charts; two results → compare

Each client runs in a process of its own, in an environment of its own where its requirements
differ; rounds go from client to client, so that all see the same machine.
"""
