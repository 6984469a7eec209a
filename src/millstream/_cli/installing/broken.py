"""What is raised where a configuration can't be changed safely."""


class Broken(Exception):
    """The file isn't what its application writes; the text says where. It's left as it is."""
