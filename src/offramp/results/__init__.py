"""What commands find out, as values: typed, with their form in JSON. Nothing here draws, prints or writes."""
