"""Archives as every program that opens them may see them: the union of all names, and each content that is there."""
