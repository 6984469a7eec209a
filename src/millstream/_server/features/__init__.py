"""The features of a server: tools, resources, prompts, and the registry of them."""
