"""The benchmarks: Millstream, its peers, and bare floors, measured in one run (`make bench`).

Nothing here is imported by the package or counted by tests. See benches/RESULTS.md for how to read the table.
"""
