"""A pipeline's definition and its conditions. Pure: knows mail, and no processor."""
