"""Is it any good? Measures of the synthetic images, each with its control beside it; a function and a command each."""
