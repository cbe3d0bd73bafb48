"""Is early exit worth it? Contenders, comparisons at equal time, and what follows from them."""
