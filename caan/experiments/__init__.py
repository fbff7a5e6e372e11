"""Comparisons of systems and searches of options: the paper's tables."""
