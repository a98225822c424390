"""What a person sees of a run: W&B, progress, plots and pictures.

May import: the ground floor.
"""
