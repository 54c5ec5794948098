"""How good a model is: validation sums, samples, and a policy's rewards."""
