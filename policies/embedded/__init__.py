"""The embedded policies: tiny ones of the released kinds, how each is made, and what the stages of its pretraining train on."""
