"""Triggers that wait for videos in the triggerer."""
