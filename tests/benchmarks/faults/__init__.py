"""The promises of `docs/reliability.md` put to the proof: faults that are made for real, and what comes of each.

    make faults                                  all of them; the table goes to docs/reliability.md
    python -m tests.benchmarks.faults E01 X29    some of them, table on the terminal only

Files are really cut, processes really killed, disks really full: commands run as processes of their own, and what the
kernel would refuse elsewhere (no locks, no flushing of folders, reads that fail, another clock) is refused to them by a
small C library that is compiled here and loaded before all others. What the test suite does already is called, not done twice.
"""
