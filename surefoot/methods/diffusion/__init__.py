"""Language models that denoise."""
