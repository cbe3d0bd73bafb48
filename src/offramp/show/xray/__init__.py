"""A record of gradients, as plots and as a page."""
