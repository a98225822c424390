"""A family of policies that the program knows nothing of: what a new one takes is this folder, its row and its traits."""
