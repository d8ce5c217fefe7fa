"""Measurements, side by side with what people know, printed as ratios."""
