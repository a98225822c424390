"""The state of a pretraining that can go on: model, optimiser and curve of one stage, and the record of it.

May import: the ground floor.
"""
