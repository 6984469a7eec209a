"""What a server offers: tools, resources, prompts, and the registry that holds them."""
