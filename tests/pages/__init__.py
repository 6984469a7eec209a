"""Tests in a browser. A package, because a fixture of that scope ends with the last test in it."""
