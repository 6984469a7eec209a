"""A door for servers written elsewhere: programs for other libraries run here after one import is changed."""
