"""How one modality is sampled and what its likelihood is: by masked diffusion, token by token, or by flow matching."""
