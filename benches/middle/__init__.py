"""Test suites of other libraries, with Millstream between their clients and their servers."""
