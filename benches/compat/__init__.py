"""The door measured by what others wrote: their tests of their server modules, and published servers."""
