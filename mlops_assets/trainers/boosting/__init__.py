"""What the libraries of boosted trees share here: when to stop."""
