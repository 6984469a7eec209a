"""The compatibility layer: programs for the official SDK 1.x run after changing their imports.

Experimental: a minor version can change it. See Stability in the documentation.
"""
