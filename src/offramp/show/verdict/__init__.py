"""A verdict as a table and as a page."""
