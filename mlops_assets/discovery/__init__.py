"""Discovery of features: find one, see what it is and who uses it, what a change reaches, what would break."""
