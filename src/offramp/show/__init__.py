"""Results for people: tables in a terminal, plots, pages of HTML and Markdown."""
